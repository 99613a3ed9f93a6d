-- A tenant's rows. The kernel does not know what a data set or a model is: records are JSON under (kind, key).
-- Few tables, because each costs every tenant a page.

CREATE TABLE record (
    kind  TEXT NOT NULL,
    key   TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

-- Secondary look-ups of records, written with each record.
CREATE TABLE field (
    kind  TEXT NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    key   TEXT NOT NULL,
    PRIMARY KEY (kind, field, value, key)
) STRICT, WITHOUT ROWID;

-- To replace the look-ups of one record.
CREATE INDEX field_of_record ON field (kind, key);

-- Objects that exist: a file without a row here is swept away.
CREATE TABLE blob (
    id          BLOB PRIMARY KEY,
    key_version INTEGER NOT NULL,
    wrapped_key BLOB NOT NULL,
    commitment  BLOB NOT NULL,
    bytes       INTEGER NOT NULL,
    sha256      BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Ledger entries that were committed with a change and may not have reached the ledger yet.
CREATE TABLE outbox (
    generation INTEGER PRIMARY KEY,
    entry      BLOB NOT NULL
) STRICT;

-- The generation of the file, and counters under `usage/…`.
CREATE TABLE state (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO state (name, value) VALUES ('generation', 0);

PRAGMA user_version = 1;
