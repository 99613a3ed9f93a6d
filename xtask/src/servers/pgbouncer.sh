#!/bin/sh
# PgBouncer in transaction mode before a PostgreSQL that `postgres.sh` started, in the foreground.
#
#   PGPASSWORD=… sh pgbouncer.sh DIR PORT POSTGRES_PORT
#
# Every database is there under its own name, and every role: PgBouncer asks the server for a role's secret when it first connects, so
# roles that are made later work at once. Debian 12 has PgBouncer 1.18, which keeps no named prepared statements in this mode.
set -eu
# Refuses to run as root, as PostgreSQL does.
[ "$(id -u)" -ne 0 ] || exec unshare --user --map-user=postgres --map-group=postgres -- sh "$0" "$@"
dir=$1 port=$2 postgres=$3
umask 077
mkdir -p "$dir"
printf '"postgres" "%s"\n' "$PGPASSWORD" >"$dir/users.txt"
unset PGPASSWORD
cat >"$dir/pgbouncer.ini" <<INI
[databases]
* = host=127.0.0.1 port=$postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
pool_mode = transaction
auth_type = scram-sha-256
auth_file = $dir/users.txt
auth_user = postgres
auth_query = SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = \$1
admin_users = postgres
max_client_conn = 2000
; Together with what goes to the server directly they stay below its 300.
default_pool_size = 20
max_db_connections = 120
server_idle_timeout = 30
; Some drivers set it at the start, and it only changes how numbers are printed.
ignore_startup_parameters = extra_float_digits
INI
PATH=$PATH:/usr/sbin
exec pgbouncer "$dir/pgbouncer.ini"
