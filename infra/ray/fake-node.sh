#!/usr/bin/env bash
# One "machine" on loopback for `ray up`, `ray submit` and `ray down`: sshd on IP:22 in PID and mount namespaces of its
# own, with a private home (an overlay) and a private folder for Ray, so that `ray stop` there, which ends every Ray
# process it sees, ends that node's alone.
#
#   infra/ray/fake-node.sh NAME IP        needs root and Debian's openssh-server and rsync; IP in 127.0.0.0/8, not .1
#
# NODES    state of the nodes, also the key pair, the environment file and Ray's token (default .nodes)
# RAY_BIN  folder of the Python that has Ray and RD3's packages (default .venv/bin)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
name=$1 ip=$2
nodes=$(realpath -m "${NODES:-.nodes}")
ray_bin=$(realpath "${RAY_BIN:-.venv/bin}")
node=$nodes/$name
ray_tmp=/tmp/ray # where Ray keeps its sockets whatever TMPDIR says

mkdir -p "$node/home" "$node/work" "$node/ray" "$nodes/ssh" "$ray_tmp" /run/sshd
chmod 700 "$nodes/ssh"
for key in id host; do
  [ -f "$nodes/ssh/$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$nodes/ssh/$key"
done
cp "$nodes/ssh/id.pub" "$nodes/ssh/authorized_keys"
for secret in auth_token nodes.env; do
  [ -f "$nodes/$secret" ] || (umask 077 && : > "$nodes/$secret")
done
[ -s "$nodes/auth_token" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$nodes/auth_token"

cat > "$node/sshd_config" << C
ListenAddress $ip:22
HostKey $nodes/ssh/host
AuthorizedKeysFile $nodes/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
C
cat > "$node/home/.bashrc" << C
export PATH=$ray_bin:\$PATH PYTHONPATH=$root OMP_NUM_THREADS=1
set -a; [ ! -f ~/.rd3.env ] || . ~/.rd3.env; set +a
C
cp "$node/home/.bashrc" "$node/home/.bash_profile"
exec unshare --pid --mount --propagation private --fork --kill-child --mount-proc bash -c "
  mount -t overlay overlay -o lowerdir=$HOME,upperdir=$node/home,workdir=$node/work $HOME
  mount --bind $node/ray $ray_tmp
  exec /usr/sbin/sshd -D -e -f $node/sshd_config"
