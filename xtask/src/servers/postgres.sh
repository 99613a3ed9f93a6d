#!/bin/sh
# A private PostgreSQL in the foreground. `exec` all the way: the process that was started is the server, so its id can be killed.
#
#   PGPASSWORD=… sh postgres.sh DIR PORT [OPTION…]
#
# DIR (absolute) is made by the first start and used again by the next. The superuser is `postgres`; over TCP on 127.0.0.1 and on the
# socket in DIR it needs the password. Options are PostgreSQL's own, as in `-c log_statement=all`.
set -eu
# PostgreSQL refuses to run as root. In a user namespace it runs as `postgres`, while the files stay ours.
[ "$(id -u)" -ne 0 ] || exec unshare --user --map-user=postgres --map-group=postgres -- sh "$0" "$@"
dir=$1 port=$2
shift 2
bin=${INSULA_PG_BIN:-/usr/lib/postgresql/15/bin}
if [ ! -e "$dir/PG_VERSION" ]; then
    rm -rf "$dir.draft" "$dir.password"
    (umask 077 && printf '%s\n' "$PGPASSWORD" >"$dir.password")
    "$bin/initdb" --pgdata="$dir.draft" --username=postgres --pwfile="$dir.password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 --data-checksums --no-sync >&2
    rm "$dir.password"
    mv -T "$dir.draft" "$dir"
fi
unset PGPASSWORD
# Durable as in production: fsync and synchronous_commit stay on. Each tenant's tables need locks while a schema is made or dropped.
exec "$bin/postgres" -D "$dir" -p "$port" -k . -c listen_addresses=127.0.0.1 -c max_connections=300 -c superuser_reserved_connections=10 \
    -c fsync=on -c synchronous_commit=on -c full_page_writes=on -c shared_buffers=128MB -c max_locks_per_transaction=256 \
    -c max_wal_size=512MB -c jit=off -c timezone=UTC -c log_timezone=UTC -c lc_messages=C "$@"
