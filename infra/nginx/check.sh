#!/usr/bin/env bash
# Is rd3.conf what nginx accepts?  With a certificate made for the occasion, below a temporary folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=tracking.example.org \
  -keyout "$scratch/privkey.pem" -out "$scratch/fullchain.pem" 2>/dev/null
sed "s|/etc/nginx/rd3/|$scratch/|" "$here/rd3.conf" >"$scratch/rd3.conf"
cat >"$scratch/nginx.conf" <<END
pid $scratch/pid;
events {}
http {
    access_log off;
    include $scratch/rd3.conf;
}
END
nginx -t -e "$scratch/error.log" -c "$scratch/nginx.conf"
