#!/usr/bin/env bash
# Installs what the virtual Slurm cluster needs and this machine lacks (Debian or Ubuntu). Sourced by tests/run.sh.
if ! command -v slurmctld >/dev/null 2>&1 || ! command -v munge >/dev/null 2>&1; then
  echo "installing slurm-wlm munge"
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi
