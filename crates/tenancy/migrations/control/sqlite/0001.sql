-- The service's own rows: who the tenants are, their wrapped keys, who may come in. No tenant content.
-- `seq` is the generation in which a row was written; `mac` covers the row and its `seq`; the sum of all MACs lies in
-- `state` as `digest`, beside the anchored generation: a row put back from an older copy does not add up.

CREATE TABLE tenant (
    id               BLOB PRIMARY KEY,
    name             TEXT NOT NULL,
    state            TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    slot             INTEGER NOT NULL UNIQUE,
    limits           TEXT NOT NULL,
    placement        TEXT NOT NULL,
    epoch_generation INTEGER NOT NULL,
    seq              INTEGER NOT NULL,
    mac              BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- An erased tenant's name is free again.
CREATE UNIQUE INDEX tenant_name ON tenant (name) WHERE state <> 'erased';

CREATE TABLE tenant_key (
    tenant     BLOB NOT NULL,
    version    INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    wrapped    BLOB NOT NULL,
    state      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    mac        BLOB NOT NULL,
    PRIMARY KEY (tenant, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE data_key (
    tenant  BLOB NOT NULL,
    purpose TEXT NOT NULL,
    n       INTEGER NOT NULL,
    version INTEGER NOT NULL,
    wrapped BLOB NOT NULL,
    seq     INTEGER NOT NULL,
    mac     BLOB NOT NULL,
    PRIMARY KEY (tenant, purpose, n)
) STRICT, WITHOUT ROWID;

-- `tenant` is NULL for the operator. `last_used_at` is written late and lies outside the MAC.
CREATE TABLE credential (
    id           TEXT PRIMARY KEY,
    kind         TEXT NOT NULL,
    tenant       BLOB,
    principal    TEXT NOT NULL,
    secret_mac   BLOB NOT NULL,
    scopes       TEXT NOT NULL,
    expires_at   INTEGER,
    created_at   INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    revoked_at   INTEGER,
    last_used_at INTEGER,
    name         TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    mac          BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX credential_of_tenant ON credential (tenant, principal);

-- Work that waits for a tenant. It gives nobody a right: whoever runs it asks the policy again.
CREATE TABLE ticket (
    id         TEXT PRIMARY KEY,
    tenant     BLOB NOT NULL,
    kind       TEXT NOT NULL,
    principal  TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    claimed_by TEXT,
    attempts   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX ticket_waiting ON ticket (created_at) WHERE claimed_by IS NULL;

CREATE TABLE erasure (
    tenant       BLOB PRIMARY KEY,
    state        TEXT NOT NULL,
    requested_at INTEGER NOT NULL,
    requested_by TEXT NOT NULL,
    updated_at   INTEGER NOT NULL,
    detail       TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    mac          BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE certificate (
    tenant BLOB PRIMARY KEY,
    json   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The generation of the file, the sum of the MACs, the next anchor slot, and small values under `meta/…`.
CREATE TABLE state (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO state (name, value) VALUES ('generation', 0), ('digest', zeroblob(32)), ('slot_next', 1);

PRAGMA user_version = 1;
