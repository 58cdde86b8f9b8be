// SPDX-License-Identifier: Apache-2.0
// A SQLite database and its statements as values that clean up after themselves.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace halfstep {

// One prepared statement, run once. Parameters are bound in order. Not thread-safe.
class SqliteStatement {
 public:
  SqliteStatement& Bind(int64_t value);
  SqliteStatement& Bind(const std::string& bytes);  // as a blob

  // True: a row can be read; false: there is no further one. Errors name the database; a full disk
  // has RESOURCE_EXHAUSTED and reason DISK_FULL.
  absl::StatusOr<bool> Step();
  // For statements that return no row.
  absl::Status Run();

  int64_t Integer(int column) const;
  std::string Bytes(int column) const;

 private:
  friend class SqliteDatabase;
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const;
  };
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
  absl::Status problem_;  // of preparing or binding; reported by Step
  int bound_ = 0;
};

// Not thread-safe.
class SqliteDatabase {
 public:
  // Opens or creates the file, with a write-ahead log and every commit synced to the disk.
  static absl::StatusOr<SqliteDatabase> Open(const std::string& path);

  SqliteStatement Prepare(const std::string& sql);
  // Statements without parameters, separated by semicolons.
  absl::Status Execute(const std::string& sql);

 private:
  struct Close {
    void operator()(sqlite3* database) const;
  };
  explicit SqliteDatabase(sqlite3* database) : database_(database) {}
  std::unique_ptr<sqlite3, Close> database_;
};

// From construction until Commit; rolls back when destroyed before.
class SqliteTransaction {
 public:
  explicit SqliteTransaction(SqliteDatabase& database);
  ~SqliteTransaction();
  SqliteTransaction(const SqliteTransaction&) = delete;
  SqliteTransaction& operator=(const SqliteTransaction&) = delete;

  // Durable on OK; nothing has happened otherwise.
  absl::Status Commit();

 private:
  SqliteDatabase& database_;
  absl::Status problem_;  // of the beginning
  bool open_ = false;
};

}  // namespace halfstep
