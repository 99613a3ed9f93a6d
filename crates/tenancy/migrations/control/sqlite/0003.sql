-- Hours of use by tenant and node: numbers, no content. `hour` is when it begins, in seconds since 1970; `counts` is JSON.

CREATE TABLE usage (
    tenant BLOB NOT NULL,
    hour   INTEGER NOT NULL,
    node   TEXT NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (tenant, hour, node)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_hour ON usage (hour, tenant, node);

PRAGMA user_version = 3;
