"""The files that a node finds in /etc/slurm and /etc/hosts, written from the cluster's description. Pure text."""

from __future__ import annotations

from launch.virtual_cluster.spec import LOGIN, ClusterSpec

NODE_MEMORY_MB = 16384
# /run is private to each node, so these paths are the same everywhere, short enough for sockets, and never shared:
# PMIx finds its folder taken when two slurmd use one TmpFS.
SLURM_CONF = """\
ClusterName=xpyd
SlurmctldHost={login}({login_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdSpoolDir=/run/slurm/spool
TmpFS=/run/slurm/tmp
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
CompleteWait=0
KillWait=10
SlurmdTimeout=15
ReturnToService=2
JobRequeue=1
MailProg=/bin/true
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobs.txt
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
PropagateResourceLimitsExcept=MEMLOCK
DefMemPerCPU=512
{gres_types}
{nodes}
{partitions}
"""


def slurm_conf(spec: ClusterSpec) -> str:
    gres = f" Gres=gpu:fake:{spec.gpus_per_node}" if spec.gpus_per_node else ""
    shape = f"CPUs={spec.cpus_per_node} RealMemory={NODE_MEMORY_MB}{gres} State=UNKNOWN"
    return SLURM_CONF.format(
        login=LOGIN,
        login_address=spec.address(LOGIN),
        folder=spec.folder,
        gres_types="GresTypes=gpu" if spec.gpus_per_node else "",
        nodes="\n".join(f"NodeName={node} NodeAddr={spec.address(node)} {shape}" for node in spec.nodes),
        partitions="\n".join(
            f"PartitionName={name} Nodes={','.join(nodes)} Default={'YES' if name == 'all' else 'NO'} "
            "MaxTime=INFINITE State=UP"
            for name, nodes in spec.partitions().items()
        ),
    )


def gres_conf(spec: ClusterSpec) -> str:
    """Fake GPUs: character devices that every machine has stand in, as Slurm wants a file for each."""
    devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
    return "".join(f"Name=gpu Type=fake File={device}\n" for device in devices[: spec.gpus_per_node])


def hosts_file(spec: ClusterSpec) -> str:
    lines = ["127.0.0.1 localhost", *(f"{spec.address(host)} {host}" for host in spec.hosts)]
    return "\n".join(lines) + "\n"


def config_files(spec: ClusterSpec) -> dict[str, str]:
    """Every file below the cluster's folder, by relative path."""
    return {
        "etc/slurm.conf": slurm_conf(spec),
        "etc/gres.conf": gres_conf(spec),
        "etc/cgroup.conf": "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n",
        "hosts": hosts_file(spec),
    }
