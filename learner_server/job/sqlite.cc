// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job/sqlite.h"

#include <sqlite3.h>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

constexpr int kBusyTimeoutMs = 5000;

absl::Status SqliteError(sqlite3* database, int code) {
  const char* file = sqlite3_db_filename(database, "main");
  const std::string message =
      absl::StrCat("job store ", file == nullptr ? "" : file, ": ", sqlite3_errmsg(database));
  switch (code & 0xff) {
    case SQLITE_FULL:
      return Error(absl::StatusCode::kResourceExhausted, "DISK_FULL", message);
    case SQLITE_CONSTRAINT:
      return Error(absl::StatusCode::kAlreadyExists, "ALREADY_EXISTS", message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return Error(absl::StatusCode::kDataLoss, "JOB_STORE_CORRUPT",
                   absl::StrCat(message, "; move the file away to start with an empty store"));
    default:
      return Error(absl::StatusCode::kUnavailable, "JOB_STORE_UNAVAILABLE", message);
  }
}

}  // namespace

void SqliteStatement::Finalize::operator()(sqlite3_stmt* statement) const {
  sqlite3_finalize(statement);
}

SqliteStatement& SqliteStatement::Bind(int64_t value) {
  if (!problem_.ok()) return *this;
  const int code = sqlite3_bind_int64(statement_.get(), ++bound_, value);
  if (code != SQLITE_OK) problem_ = SqliteError(sqlite3_db_handle(statement_.get()), code);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(const std::string& bytes) {
  if (!problem_.ok()) return *this;
  const int code =
      sqlite3_bind_blob64(statement_.get(), ++bound_, bytes.data(), bytes.size(), SQLITE_TRANSIENT);
  if (code != SQLITE_OK) problem_ = SqliteError(sqlite3_db_handle(statement_.get()), code);
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  HALFSTEP_RETURN_IF_ERROR(problem_);
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return SqliteError(sqlite3_db_handle(statement_.get()), code);
}

absl::Status SqliteStatement::Run() { return Step().status(); }

int64_t SqliteStatement::Integer(int column) const {
  return sqlite3_column_int64(statement_.get(), column);
}

std::string SqliteStatement::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_.get(), column);
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), size);
}

void SqliteDatabase::Close::operator()(sqlite3* database) const { sqlite3_close_v2(database); }

absl::StatusOr<SqliteDatabase> SqliteDatabase::Open(const std::string& path) {
  sqlite3* raw = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  SqliteDatabase database(raw);
  if (code != SQLITE_OK) {
    return Error(absl::StatusCode::kUnavailable, "JOB_STORE_UNAVAILABLE",
                 absl::StrCat("cannot open job store ", path, ": ", sqlite3_errstr(code)));
  }
  sqlite3_busy_timeout(raw, kBusyTimeoutMs);
  HALFSTEP_RETURN_IF_ERROR(database.Execute(
      "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"));
  return database;
}

SqliteStatement SqliteDatabase::Prepare(const std::string& sql) {
  SqliteStatement result;
  sqlite3_stmt* raw = nullptr;
  const int code =
      sqlite3_prepare_v2(database_.get(), sql.data(), static_cast<int>(sql.size()), &raw, nullptr);
  result.statement_.reset(raw);
  if (code != SQLITE_OK) result.problem_ = SqliteError(database_.get(), code);
  return result;
}

absl::Status SqliteDatabase::Execute(const std::string& sql) {
  const int code = sqlite3_exec(database_.get(), sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : SqliteError(database_.get(), code);
}

SqliteTransaction::SqliteTransaction(SqliteDatabase& database)
    : database_(database), problem_(database.Execute("BEGIN IMMEDIATE")) {
  open_ = problem_.ok();
}

SqliteTransaction::~SqliteTransaction() {
  // Nothing can be done about a rollback that fails: SQLite has then rolled back by itself.
  if (open_) database_.Execute("ROLLBACK").IgnoreError();
}

absl::Status SqliteTransaction::Commit() {
  HALFSTEP_RETURN_IF_ERROR(problem_);
  HALFSTEP_RETURN_IF_ERROR(database_.Execute("COMMIT"));
  open_ = false;
  return absl::OkStatus();
}

}  // namespace halfstep
