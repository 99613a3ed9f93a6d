-- Tenants' rows on PostgreSQL. The same tables in three places: schema `insula` for all pooled tenants together, a schema or a database of
-- its own for others. Run with the place's schema first in the search path; nothing here names a schema or a role.
--
-- No statement of the service names a tenant. It is set when a transaction begins (`SET LOCAL insula.tenant`); without it, and with an
-- empty one, every statement on these tables fails. The rules of every table, which the catalogue check holds the server to:
-- * `tenant` comes first in every key: another tenant's rows are neither in the way of a key nor found by one;
-- * row-level security is forced, with one policy, for everybody;
-- * texts compare as bytes, whatever the database's locale: listings are ordered as on SQLite.
-- Values that matter are sealed before they come here: storing them out of line uncompressed saves a vain attempt each time.

CREATE TABLE record (
    tenant uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    kind   text COLLATE "C" NOT NULL,
    key    text COLLATE "C" NOT NULL,
    value  bytea NOT NULL,
    PRIMARY KEY (tenant, kind, key)
);
ALTER TABLE record ALTER value SET STORAGE EXTERNAL;
ALTER TABLE record ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON record
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);

-- Secondary look-ups of records, written with each record; `value` is a keyed hash.
CREATE TABLE field (
    tenant uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    kind   text COLLATE "C" NOT NULL,
    field  text COLLATE "C" NOT NULL,
    value  text COLLATE "C" NOT NULL,
    key    text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, kind, field, value, key)
);
ALTER TABLE field ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON field
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);

-- To replace the look-ups of one record.
CREATE INDEX field_of_record ON field (tenant, kind, key);

-- Objects that exist: a file without a row here is swept away.
CREATE TABLE blob (
    tenant      uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    id          bytea NOT NULL,
    key_version bigint NOT NULL,
    wrapped_key bytea NOT NULL,
    commitment  bytea NOT NULL,
    bytes       bigint NOT NULL,
    sha256      bytea NOT NULL,
    PRIMARY KEY (tenant, id)
);
ALTER TABLE blob ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON blob
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);

-- Ledger entries that were committed with a change and may not have reached the ledger yet.
CREATE TABLE outbox (
    tenant     uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    generation bigint NOT NULL,
    entry      bytea NOT NULL,
    PRIMARY KEY (tenant, generation)
);
ALTER TABLE outbox ALTER entry SET STORAGE EXTERNAL;
ALTER TABLE outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON outbox
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);

-- Numbers: the generation of the rows, the fence (the newest lease under which somebody wrote), counters under `usage/…`.
-- Changed by every commit: the free space lets a change stay on its page.
CREATE TABLE state (
    tenant uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    name   text COLLATE "C" NOT NULL,
    value  bigint NOT NULL,
    PRIMARY KEY (tenant, name)
) WITH (fillfactor = 50);
ALTER TABLE state ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON state
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);

-- Leaves of the tenant's ledger, shipped from the node that writes it: `entries` of them from number `first` on.
CREATE TABLE ledger_segment (
    tenant  uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    first   bigint NOT NULL,
    entries bigint NOT NULL,
    leaves  bytea NOT NULL,
    PRIMARY KEY (tenant, first)
);
ALTER TABLE ledger_segment ALTER leaves SET STORAGE EXTERNAL;
ALTER TABLE ledger_segment ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ledger_segment
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);

-- The signed head of the tenant's ledger as last shipped.
CREATE TABLE ledger_note (
    tenant uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid,
    note   bytea NOT NULL,
    PRIMARY KEY (tenant)
) WITH (fillfactor = 50);
ALTER TABLE ledger_note ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON ledger_note
    USING (tenant = current_setting('insula.tenant')::uuid) WITH CHECK (tenant = current_setting('insula.tenant')::uuid);
