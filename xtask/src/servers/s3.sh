#!/bin/sh
# A private S3 server (SeaweedFS, all its parts in one process) in the foreground.
#
#   INSULA_S3_BIN=… AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… sh s3.sh DIR PORT
#
# DIR (absolute) is made by the first start and used again by the next. PORT speaks S3, and IAM as AWS does; the seven ports after it are
# the server's own. The key is the administrator's: it makes buckets, users, their policies and their keys.
# Only for tests: whoever reaches the seven other ports reads and writes everything.
set -eu
dir=$1 port=$2
umask 077
mkdir -p "$dir"
cat >"$dir/admin.json" <<JSON
{"identities": [{"name": "admin", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "$AWS_ACCESS_KEY_ID", "secretKey": "$AWS_SECRET_ACCESS_KEY"}]}]}
JSON
# One volume a bucket at first, where production makes seven. The key is for buckets with encryption by default.
export WEED_MASTER_VOLUME_GROWTH_COPY_1=1 WEED_S3_SSE_KEY="$AWS_SECRET_ACCESS_KEY" HOME="$dir"
unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
exec "$INSULA_S3_BIN" -logtostderr server -dir="$dir" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -s3 -s3.port="$port" -s3.port.grpc=$((port + 1)) -s3.port.iceberg=0 -s3.port.lance=0 \
    -s3.config="$dir/admin.json" -s3.localSocket="$dir/s3.sock" -s3.iam.readOnly=false -s3.autoCreateBucket=false \
    -master.port=$((port + 2)) -master.port.grpc=$((port + 3)) -master.telemetry=false \
    -master.electionTimeout=1s -master.heartbeatInterval=200ms -master.volumeSizeLimitMB=1024 \
    -volume.port=$((port + 4)) -volume.port.grpc=$((port + 5)) -volume.max=100000 -volume.preStopSeconds=0 \
    -filer -filer.port=$((port + 6)) -filer.port.grpc=$((port + 7)) -filer.localSocket="$dir/filer.sock"
