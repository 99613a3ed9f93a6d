-- Hours of use by tenant and node: numbers, no content. `hour` is when it begins, in seconds since 1970; `counts` is JSON.

CREATE TABLE usage (
    tenant bytea NOT NULL,
    hour   bigint NOT NULL,
    node   text COLLATE "C" NOT NULL,
    counts text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, hour, node)
);

CREATE INDEX usage_hour ON usage (hour, tenant, node);
