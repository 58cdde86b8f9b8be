#!/usr/bin/env bash
# clang-tidy with the list of .clang-tidy over what the working tree and the last commit changed: C++ sources,
# and for a header the source of its name or one that includes it. At most 12 sources, so that a large change
# does not hold the tests up; what is not looked at is named.
#   clang_tidy_test.sh SOURCE_DIR BUILD_DIR
set -euo pipefail
source_dir=$1 build_dir=$2 limit=12
cd "$source_dir"
database=$build_dir/compile_commands.json
[[ -r $database ]] || { echo "$database is missing: configure with a preset"; exit 1; }
command -v clang-tidy-14 >/dev/null || { echo "clang-tidy-14 is missing: deploy/install-deps.sh"; exit 1; }

changed() {
  local base
  base=$(git rev-parse --verify --quiet HEAD~1 || git rev-parse HEAD)
  git diff --name-only --diff-filter=d "$base" -- '*.cc' '*.h'
  git ls-files --others --exclude-standard -- '*.cc' '*.h'
}

# The first of the sources on standard input that this build compiles; nothing if there is none.
first_compiled() {
  local file
  while read -r file; do
    if grep -qF "\"$source_dir/$file\"" "$database"; then
      printf '%s\n' "$file"
      return
    fi
  done
}

# The source that shows `$1` to clang-tidy.
source_of() {
  case $1 in
    *.h) { printf '%s\n' "${1%.h}.cc"; git grep -lF "#include \"$1\"" -- '*.cc' || true; } ;;
    *) printf '%s\n' "$1" ;;
  esac | first_compiled
}

sources=() left_out=()
declare -A seen=()
while read -r file; do
  source=$(source_of "$file")
  if [[ -z $source ]]; then
    left_out+=("$file")
  elif [[ -z ${seen[$source]:-} ]]; then
    seen[$source]=1
    if ((${#sources[@]} < limit)); then sources+=("$source"); else left_out+=("$file"); fi
  fi
done < <(changed | sort -u)
((${#left_out[@]} == 0)) || printf 'not looked at: %s\n' "${left_out[@]}"
((${#sources[@]} > 0)) || { echo 'nothing to look at'; exit 0; }
printf 'looking at: %s\n' "${sources[@]}"
# Its counts of suppressed warnings are noise.
printf '%s\0' "${sources[@]}" |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 --quiet -p "$build_dir" 2> >(grep -v ' warnings\? generated' >&2 || true)
