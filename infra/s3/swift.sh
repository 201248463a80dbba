#!/usr/bin/env bash
# A real, persistent S3 server with signed requests on 127.0.0.1: OpenStack Swift with its s3api, from pip.
# For development and tests, without root, Docker or anything outside this machine.
#
#   swift.sh install|configure|start|stop|wipe|status|env
#
# S3_HOME (state; default ./.s3)   S3_VENV (default $S3_HOME/venv)   S3_PORT (default 9000; uses also +10, +11, +12)
# AWS_ACCESS_KEY_ID (form account:user; default rd3:rd3)   AWS_SECRET_ACCESS_KEY
# The file system of S3_HOME must keep extended attributes (ext4, xfs, overlay do).
set -euo pipefail
umask 077 # the configuration has the secret

SWIFT=swift==2.38.3
S3_HOME=${S3_HOME:-$PWD/.s3}
S3_VENV=${S3_VENV:-$S3_HOME/venv}
S3_PORT=${S3_PORT:-9000}
KEY=${AWS_ACCESS_KEY_ID:-rd3:rd3}
SECRET=${AWS_SECRET_ACCESS_KEY:-rd3-development-secret}
BIN=$S3_VENV/bin CONF=$S3_HOME/etc LOG=$S3_HOME/log RUN=$S3_HOME/run
SERVERS="account container object"
export PYTHONPATH=$(cd "$(dirname "$0")" && pwd)${PYTHONPATH:+:$PYTHONPATH} # has backend_secret.py

port() { case $1 in object) echo $((S3_PORT + 10)) ;; container) echo $((S3_PORT + 11)) ;; account) echo $((S3_PORT + 12)) ;; esac; }

install() {
  [ -x "$BIN/swift-proxy-server" ] && return
  python3 -m venv "$S3_VENV"
  "$BIN/pip" install --quiet "$SWIFT"
}

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

configure() {
  mkdir -p "$CONF" "$LOG" "$RUN" "$S3_HOME/cache" "$S3_HOME/disks/d1"
  [ -f "$CONF/swift.conf" ] || cat >"$CONF/swift.conf" <<END
[swift-hash]
swift_hash_path_suffix = $(random)
swift_hash_path_prefix = $(random)
END
  [ -s "$CONF/backend-secret" ] || random >"$CONF/backend-secret"
  secret=$(cat "$CONF/backend-secret")
  for server in $SERVERS; do
    cat >"$CONF/$server-server.conf" <<END
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $(port "$server")
workers = 1
user = $(id -un)
swift_dir = $CONF
devices = $S3_HOME/disks
mount_check = false
log_level = WARNING
recon_cache_path = $S3_HOME/cache
fallocate_reserve = 0
[pipeline:main]
pipeline = secret $server-server
[filter:secret]
paste.filter_factory = backend_secret:require
secret = $secret
[app:$server-server]
use = egg:swift#$server
END
    [ -f "$CONF/$server.ring.gz" ] && continue
    "$BIN/swift-ring-builder" "$CONF/$server.builder" create 6 1 0 >/dev/null
    "$BIN/swift-ring-builder" "$CONF/$server.builder" add "r1z1-127.0.0.1:$(port "$server")/d1" 1 >/dev/null
    "$BIN/swift-ring-builder" "$CONF/$server.builder" rebalance >/dev/null
  done
  cat >"$CONF/proxy-server.conf" <<END
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $S3_PORT
workers = 1
user = $(id -un)
swift_dir = $CONF
log_level = WARNING
expose_info = false
[pipeline:main]
pipeline = catch_errors gatekeeper secret healthcheck cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:secret]
paste.filter_factory = backend_secret:send
secret = $secret
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
# None: a port that only root may open, as whoever answers there decides who may read a bucket.
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_${KEY%%:*}_${KEY##*:} = $SECRET .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
END
}

# Whether the process of a server's pid file is that server, and not one that got its number later.
running() { grep -qs "swift-$1-server" "/proc/$(cat "$RUN/$1.pid" 2>/dev/null || echo none)/cmdline"; }

start() {
  install
  configure
  for server in $SERVERS proxy; do
    running "$server" && continue
    setsid nohup "$BIN/swift-$server-server" "$CONF/$server-server.conf" >"$LOG/$server.log" 2>&1 </dev/null &
    echo $! >"$RUN/$server.pid"
  done
  for _ in $(seq 150); do
    if curl -sf "http://127.0.0.1:$S3_PORT/healthcheck" >/dev/null; then
      echo "S3 at http://127.0.0.1:$S3_PORT"
      return
    fi
    sleep 0.2
  done
  echo "The S3 server did not come up; the last lines of $LOG:" >&2
  tail -n 3 "$LOG"/*.log >&2
  return 1
}

stop() {
  for file in "$RUN"/*.pid; do
    [ -f "$file" ] || continue
    kill -- "-$(cat "$file")" 2>/dev/null || true # its own process group, with its workers
    rm -f "$file"
  done
}

status() {
  for file in "$RUN"/*.pid; do
    [ -f "$file" ] || continue
    kill -0 "$(cat "$file")" 2>/dev/null && state=up || state=down
    echo "$(basename "$file" .pid) $state"
  done
}

case ${1:-} in
  install) install ;;
  configure) install && configure ;;
  start) start ;;
  stop) stop ;;
  wipe) stop && rm -rf "$CONF" "$LOG" "$RUN" "$S3_HOME/cache" "$S3_HOME/disks" ;;
  status) status ;;
  env)
    printf 'export AWS_ACCESS_KEY_ID=%q AWS_SECRET_ACCESS_KEY=%q AWS_DEFAULT_REGION=us-east-1\n' "$KEY" "$SECRET"
    echo "export AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT"
    ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
