#!/usr/bin/env bash
# Installs the Debian packages that Halfstep is built from and tested with.
#   deploy/install-deps.sh [build|test]
# build: what the servers and the command need. test (default): that and the tools of the tests.
# Root, or sudo. Quick when everything is there; installs nothing but Debian packages.
set -euo pipefail

build_packages=(
  build-essential ca-certificates ccache cmake ninja-build pkg-config
  grpc-proto golang-github-gogo-googleapis-dev libgrpc++-dev libprotobuf-dev protobuf-compiler
  protobuf-compiler-grpc
  libabsl-dev libssl-dev
  prometheus-cpp-dev libcivetweb-dev
  libcli11-dev libspdlog-dev libyaml-cpp-dev nlohmann-json3-dev
  libgloo-dev libhwy-dev libpcre2-dev libsqlite3-dev libutf8proc-dev libxxhash-dev
  libbenchmark-dev libboost-context-dev libgmock-dev libgtest-dev
  python3
)
test_packages=(clang-format-14 clang-tidy-14 git prometheus)

case "${1:-test}" in
  build) packages=("${build_packages[@]}") ;;
  test) packages=("${build_packages[@]}" "${test_packages[@]}") ;;
  *) echo "usage: $0 [build|test]" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "install-deps: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "install-deps: missing ${missing[*]}: run as root, or install sudo" >&2
    exit 1
  }
  as_root=(sudo)
fi

# The prometheus package would start a server on its default port; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod +x "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "install-deps: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
