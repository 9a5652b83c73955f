#!/usr/bin/env bash
# Runs the README's two commands on a bare Debian: a root folder with the smallest variant of
# debootstrap and a user who has sudo, git, curl and this machine's Rust.
#   tests/bare.sh SUITE FOLDER          creates a root folder (SUITE is bookworm or trixie) and runs
#                                       both commands in its checkout
#   tests/bare.sh SUITE FOLDER COMMAND  runs COMMAND in the checkout instead; FOLDER may exist
#   tests/bare.sh SUITE --quick         runs the install scripts, the unit tests of the build
#                                       without features and one build with C libraries in a
#                                       temporary root folder, as tests/run.sh does
# Needs root on Debian, and Rust from rustup; exits with code 77 without them. All mounts and
# processes are in namespaces of this script and end with it, even if it is interrupted. FOLDER is
# kept for inspection and for more commands.
set -euo pipefail

# The last build is of the only program that uses C libraries. It shows that everything it needs is
# installed and compatible, and shares its dependencies with the tests.
quick='
. tests/install.sh
. tests/without_features.sh
cargo build "${without[@]}" --package vljepa-worker --features mpi,video
mpirun --oversubscribe -np 2 target/debug/vljepa-worker --features
'

unfit() {
  echo "tests/bare.sh: not run: $1"
  exit 77
}

# Creates the root folder and its user, and copies this machine's settings for package registries.
make_root() {
  local mirror cargo=$root/home/dev/.cargo
  [ ! -e "$root" ] || { echo "tests/bare.sh: $root exists but has no checkout; remove it" >&2; return 1; }
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
  debootstrap --variant=minbase --include=ca-certificates,git,sudo,curl "$suite" "$root" "${mirror:-http://deb.debian.org/debian}" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log"; return 1; }
  rm "$root.log"
  # The folder need not survive a power cut, so dpkg need not sync.
  echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
  apt-config dump | grep '^Acquire::[a-z]*::Proxy' >"$root/etc/apt/apt.conf.d/proxy" || true
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
  if [ -f "${SSL_CERT_FILE:-}" ]; then
    cp "$SSL_CERT_FILE" "$root/usr/local/share/ca-certificates/machine.crt"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
  fi
  chroot "$root" useradd --create-home --shell /bin/bash dev
  echo 'dev ALL=(ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/dev"
  mkdir -p "$cargo" "$root/home/dev/.rustup"
  cp -r "$cargo_home/bin" "$cargo/"
  echo 'export PATH="$HOME/.cargo/bin:$PATH"' >"$cargo/env"
  [ ! -f "$cargo_home/config.toml" ] || cp "$cargo_home/config.toml" "$cargo/"
  git clone --quiet . "$root/home/dev/vljepa"
  chroot "$root" chown -R dev:dev /home/dev
}

# Runs the command in the checkout, in a login shell of the user.
run_command() {
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/dev/shm"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --bind -o ro "$rustup_home" "$root/home/dev/.rustup"
  chroot "$root" su --whitelist-environment=http_proxy,https_proxy,no_proxy,PIP_INDEX_URL --login dev --command "set -e; cd vljepa; $command"
}

inside() {
  set -euo pipefail
  [ -d "$root/home/dev/vljepa" ] || make_root
  grep -qx "VERSION_CODENAME=$suite" "$root/etc/os-release" || { echo "tests/bare.sh: $root is not a root folder of $suite" >&2; exit 2; }
  run_command
}

[ $# -ge 2 ] || { sed -n '2,12s/^# //p' "$0"; exit 2; }
suite=$1 rustup_home=${RUSTUP_HOME:-$HOME/.rustup} cargo_home=${CARGO_HOME:-$HOME/.cargo} temporary=
root=$(realpath -m -- "$2") command=${3:-'bash recipes/quickstart.sh; bash tests/run.sh'}
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || unfit "it needs root"
grep -qx ID=debian /etc/os-release || unfit "it needs Debian"
[ -d "$rustup_home/toolchains" ] || unfit "it needs Rust from rustup, but there is no folder $rustup_home"
namespaces=(unshare --mount --pid --fork --kill-child)
"${namespaces[@]}" true 2>/dev/null || unfit "root may not mount on this machine"
. recipes/packages.sh
need debootstrap command -v debootstrap
need procps command -v pkill
install_needed

# The end of a namespace's first process ends all others, and with them the mounts.
clean() {
  [ -z "${bare:-}" ] || pkill -KILL -P "$bare" || true
  wait
  [ -z "$temporary" ] || rm -rf "$temporary"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ "$2" = --quick ]; then
  temporary=$(mktemp -d)
  root=$temporary/root command=$quick
fi
export suite root command rustup_home cargo_home
export -f make_root run_command inside
# Background processes ignore Ctrl-C by default, and all tests would inherit that.
env --default-signal "${namespaces[@]}" bash -c inside &
bare=$!
wait "$bare"
