#!/bin/sh
# Runs a command with a Slurm of one node, this machine, that lives as long as the command.
#   tests/cluster/slurm.sh COMMAND…
# Needs slurmctld, slurmd, slurm-client and munge; nothing outside of a temporary folder is changed.
set -eu
command -v munged >/dev/null && command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v srun >/dev/null ||
    "$(dirname "$0")/../packages.sh" "The tests of launchers need Slurm" slurmctld slurmd slurm-client munge
PATH="$PATH:/usr/sbin"
folder=$(mktemp -d)
user=$(id -un)
# Ports below those that systems give to connections, other ones for each run.
port=$((20000 + $$ % 10000))

end() {
    # The daemons write their numbers to files once they run. What they still write would be in the way of removing the folder.
    for file in "$folder"/slurmd.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || continue
        tries=0
        while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null && [ $tries -lt 100 ]; do
            tries=$((tries + 1))
            sleep 0.1
        done
    done
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' INT TERM

mkdir "$folder/state" "$folder/spool"
dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 2>/dev/null
# Others may pass to the socket, and read nothing else.
chmod 711 "$folder"
chmod 400 "$folder/munge.key"
munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=FORCE
CONF
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
tries=0
until sinfo --noheader --format=%t 2>/dev/null | grep -q idle; do
    tries=$((tries + 1))
    if [ $tries -gt 150 ]; then
        echo "Slurm does not start:" >&2
        tail -n 20 "$folder"/*.log >&2
        exit 1
    fi
    sleep 0.2
done
"$@"
