#!/usr/bin/env bash
# tests/gpu/two_faces.sh RANKS COMMAND...
# Runs a command, in which RANKS ranks are started by mpirun, on two machines that are both this one: half of the ranks
# each, behind a host name of its own, which is what MPI and NCCL tell machines by. They reach each other through the
# loopback interface. Each face sees half as many GPUs as there are ranks: the first ones, the other the last ones. With
# fewer GPUs than ranks two share one, never on one face, and NCCL may hang there. Exit: of the command; 77 if this machine does
# not let a process have another host name.
set -euo pipefail

self=$(realpath "$0")
faces=(127.0.0.2 127.0.0.3) # numbers: nobody is asked what they mean
apart=(unshare --uts)
"${apart[@]}" true 2>/dev/null || apart=(unshare --user --map-root-user --uts) # not root, or root without the right

# What mpirun takes for a remote shell: --shell FACE COMMAND, in words for a shell.
if [ "${1-}" = --shell ]; then
    export TWO_FACES_NAME=$2
    shift 2
    if [ "$TWO_FACES_NAME" = "${faces[0]}" ]; then gpus=$TWO_FACES_FIRST; else gpus=$TWO_FACES_LAST; fi
    # Where MPI sees two machines NCCL must too.
    export CUDA_VISIBLE_DEVICES=$gpus NCCL_HOSTID=$TWO_FACES_NAME
    # shellcheck disable=SC2016 # the inner shell's words
    exec "${apart[@]}" bash -c 'hostname "$TWO_FACES_NAME" && eval "exec $*"' bash "$@"
fi

case ${1-} in
-h | --help) sed -n '2,7s/^# //p' "$0" && echo 'example: tests/gpu/two_faces.sh 4 tandem run examples/plans/lm_pp3_4gpu.yaml' && exit 0 ;;
esac
if [ $# -lt 2 ] || [[ ! $1 =~ ^[0-9]+$ ]] || [ "$1" -lt 2 ]; then
    echo "tests/gpu/two_faces.sh: ${*:-nothing}: expected a number of ranks from 2 on, and a command" >&2
    exit 2
fi
if ! "${apart[@]}" true 2>/dev/null; then
    echo 'tests/gpu/two_faces.sh: this machine does not let a process have another host name' >&2
    exit 77
fi
each=$((($1 + 1) / 2))
shift

if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    visible=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES")
else
    visible=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
fi
list() { paste -sd, -; }
TWO_FACES_FIRST=$(head -n $each <<<"$visible" | list)
TWO_FACES_LAST=$(tail -n $each <<<"$visible" | list)
export TWO_FACES_FIRST TWO_FACES_LAST

# MPI's and NCCL's connections have ports apart (tests/gpu/break_link.py tells them by that).
export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent="$self --shell" OMPI_MCA_orte_default_hostfile=${self%.sh}.hosts \
    OMPI_MCA_rmaps_base_mapping_policy=ppr:$each:node OMPI_MCA_oob_tcp_if_include=lo OMPI_MCA_btl_tcp_if_include=lo \
    OMPI_MCA_btl_tcp_port_min_v4=24000 OMPI_MCA_btl_tcp_port_range_v4=1000 OMPI_MCA_pml=ob1
# No network but sockets, and no memory that crosses machines.
export NCCL_SOCKET_IFNAME=lo NCCL_NET=Socket NCCL_IB_DISABLE=1 NCCL_MNNVL_ENABLE=0
exec "$@"
