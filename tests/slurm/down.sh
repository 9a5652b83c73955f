#!/usr/bin/env bash
# Stops the cluster in FOLDER and removes its files: tests/slurm/down.sh FOLDER
set -uo pipefail
folder=$1
[ -f "$folder/env" ] || exit 0
. "$folder/env"
scancel -u root 2>/dev/null
daemons() { for p in "$folder"/slurmd.*.pid "$folder/slurmctld.pid"; do [ -s "$p" ] && cat "$p"; done; }
for p in $(daemons); do kill "$p" 2>/dev/null; done
for _ in $(seq 100); do
  alive=0
  for p in $(daemons); do kill -0 "$p" 2>/dev/null && alive=1; done
  [ $alive = 0 ] && break
  sleep 0.1
done
for p in $(daemons); do kill -9 "$p" 2>/dev/null; done
rm -rf "$folder" /dev/shm/*.node[0-9]*
