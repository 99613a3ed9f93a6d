-- One type a column, as PostgreSQL has it: `state` keeps numbers, bytes go to `meta`.
-- `epoch` is the newest epoch of the root key that all stored keys were re-wrapped under.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (name, value) SELECT name, value FROM state WHERE name = 'digest' OR name LIKE 'meta/%';

CREATE TABLE numbers (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO numbers (name, value) SELECT name, value FROM state WHERE name IN ('generation', 'slot_next');
INSERT INTO numbers (name, value) VALUES ('epoch', 0);
DROP TABLE state;
ALTER TABLE numbers RENAME TO state;

PRAGMA user_version = 2;
