"""A real slurm on this machine: munge, a controller, and two node daemons that share its host. Needs root."""
import os
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Say why there can be no cluster here; returns None when there can."""
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    absent = [p for p in PROGRAMS if not shutil.which(p)]
    if absent:
        return 'no %s: apt-get install slurm-wlm munge' % ', '.join(absent)
    return 'slurm\'s daemons need root' if os.geteuid() else None


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """A slurm that runs from its construction until `stop`, which ends all its daemons.

    folder: where all its files go. The path must be short, as it becomes a socket's, and nobody else may use it.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        self.environment = dict(os.environ, SLURM_CONF=os.path.join(self.folder, 'slurm.conf'))
        self.daemons = []
        os.chmod(self.folder, 0o755)  # munge insists
        os.mkdir(os.path.join(self.folder, 'state'))
        with open(self.environment['SLURM_CONF'], 'w') as f:
            f.write(CONFIGURATION.format(host=socket.gethostname().split('.')[0], folder=self.folder,
                                         ports=free_ports(3), cores=os.cpu_count()))
        key = os.path.join(self.folder, 'munge.key')
        with open(key, 'wb') as f:
            f.write(os.urandom(128))
        os.chmod(key, 0o400)
        try:
            self._start('munged', '--foreground', '--force', '--key-file', key,
                        '--socket', self.folder + '/munge.socket', '--pid-file', self.folder + '/munged.pid',
                        '--log-file', self.folder + '/munged.log', '--seed-file', self.folder + '/munged.seed')
            self._wait(lambda: os.path.exists(self.folder + '/munge.socket'))
            self._start('slurmctld', '-D')
            for node in ('n1', 'n2'):
                self._start('slurmd', '-D', '-N', node)
            self._wait(lambda: self.run('sinfo', '-h', '-t', 'idle', '-o', '%D', check=False).strip() == '2')
        except BaseException:
            self.stop()
            raise

    def _start(self, *command):
        with open(os.path.join(self.folder, '%d-%s.out' % (len(self.daemons), command[0])), 'w') as f:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=f,
                                                 stderr=subprocess.STDOUT))

    def _wait(self, ready, timeout=60):
        end = time.time() + timeout
        while not ready():
            for daemon in self.daemons:
                assert daemon.poll() is None, '%s ended: %s' % (daemon.args, self.logs())
            assert time.time() < end, self.logs()
            time.sleep(0.2)

    def logs(self):
        text = ''
        for name in sorted(os.listdir(self.folder)):
            if name.endswith(('.log', '.out')):
                with open(os.path.join(self.folder, name), errors='replace') as f:
                    text += '\n== %s\n%s' % (name, f.read()[-1500:])
        return text

    def run(self, *command, check=True, cwd=None, env=None):
        done = subprocess.run(command, env=dict(self.environment, **(env or {})), cwd=cwd, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
        assert not check or done.returncode == 0, '%s: %s%s' % (command, done.stderr, self.logs())
        return done.stdout

    def state(self, job):
        """Return a job's state, such as PENDING, RUNNING or COMPLETED, and how often it was started again."""
        words = self.run('scontrol', '-o', 'show', 'job', job).split()
        shown = dict(word.split('=', 1) for word in words if '=' in word)
        return shown['JobState'], int(shown['Restarts'])

    def stop(self):
        self.run('scancel', '--full', '--signal=KILL', '--user=root', check=False)
        for daemon in self.daemons[::-1]:
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
