-- The service's own rows on PostgreSQL: who the tenants are, their wrapped keys, who may come in, which node is home to whom. No tenant
-- content. Run with the schema `insula_control` first in the search path; nothing here names a schema or a role.
--
-- `seq` is the generation in which a row was written; `mac` covers the row and its `seq`; the sum of all MACs lies in `meta` as `digest`,
-- beside the anchored generation: a row put back from an older copy does not add up.
-- Every writer locks the row `generation` of `state` first, so that seq and sum are right with several nodes.
-- Texts compare as bytes, whatever the database's locale: listings are ordered as on SQLite.

CREATE TABLE tenant (
    id               bytea PRIMARY KEY,
    name             text COLLATE "C" NOT NULL,
    state            text COLLATE "C" NOT NULL,
    created_at       bigint NOT NULL,
    slot             bigint NOT NULL UNIQUE,
    limits           text COLLATE "C" NOT NULL,
    placement        text COLLATE "C" NOT NULL,
    epoch_generation bigint NOT NULL,
    seq              bigint NOT NULL,
    mac              bytea NOT NULL
);

-- An erased tenant's name is free again.
CREATE UNIQUE INDEX tenant_name ON tenant (name) WHERE state <> 'erased';

CREATE TABLE tenant_key (
    tenant     bytea NOT NULL,
    version    bigint NOT NULL,
    epoch      bigint NOT NULL,
    wrapped    bytea NOT NULL,
    state      text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    seq        bigint NOT NULL,
    mac        bytea NOT NULL,
    PRIMARY KEY (tenant, version)
);

CREATE TABLE data_key (
    tenant  bytea NOT NULL,
    purpose text COLLATE "C" NOT NULL,
    n       bigint NOT NULL,
    version bigint NOT NULL,
    wrapped bytea NOT NULL,
    seq     bigint NOT NULL,
    mac     bytea NOT NULL,
    PRIMARY KEY (tenant, purpose, n)
);

-- `tenant` is NULL for the operator. `last_used_at` is written late and lies outside the MAC.
CREATE TABLE credential (
    id           text COLLATE "C" PRIMARY KEY,
    kind         text COLLATE "C" NOT NULL,
    tenant       bytea,
    principal    text COLLATE "C" NOT NULL,
    secret_mac   bytea NOT NULL,
    scopes       text COLLATE "C" NOT NULL,
    expires_at   bigint,
    created_at   bigint NOT NULL,
    created_by   text COLLATE "C" NOT NULL,
    revoked_at   bigint,
    last_used_at bigint,
    name         text COLLATE "C" NOT NULL,
    seq          bigint NOT NULL,
    mac          bytea NOT NULL
);

CREATE INDEX credential_of_tenant ON credential (tenant, principal);

-- Work that waits for a tenant. It gives nobody a right: whoever runs it asks the policy again. `claimed_by` is the name of a node.
CREATE TABLE ticket (
    id         text COLLATE "C" PRIMARY KEY,
    tenant     bytea NOT NULL,
    kind       text COLLATE "C" NOT NULL,
    principal  text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    claimed_by text COLLATE "C",
    attempts   bigint NOT NULL
);

CREATE INDEX ticket_waiting ON ticket (created_at) WHERE claimed_by IS NULL;

CREATE TABLE erasure (
    tenant       bytea PRIMARY KEY,
    state        text COLLATE "C" NOT NULL,
    requested_at bigint NOT NULL,
    requested_by text COLLATE "C" NOT NULL,
    updated_at   bigint NOT NULL,
    detail       text COLLATE "C" NOT NULL,
    seq          bigint NOT NULL,
    mac          bytea NOT NULL
);

CREATE TABLE certificate (
    tenant bytea PRIMARY KEY,
    json   text COLLATE "C" NOT NULL
);

-- The sum of the MACs, and small values under `meta/…`.
CREATE TABLE meta (
    name  text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL
) WITH (fillfactor = 50);

INSERT INTO meta (name, value) VALUES ('digest', decode(repeat('00', 32), 'hex'));

-- Numbers: the generation of these rows, the next anchor slot, the newest epoch of the root key that all stored keys were re-wrapped under.
-- Changed by every commit: the free space lets a change stay on its page.
CREATE TABLE state (
    name  text COLLATE "C" PRIMARY KEY,
    value bigint NOT NULL
) WITH (fillfactor = 50);

INSERT INTO state (name, value) VALUES ('generation', 0), ('slot_next', 1), ('epoch', 0);

-- Which node is home to a tenant, until when by the clock of this server, and who waits for it. `fence` only grows: a tenant's rows refuse
-- who comes with an older one. The service itself is the tenant of all zeros. Renewed every few seconds.
CREATE TABLE lease (
    tenant     bytea PRIMARY KEY,
    node       text COLLATE "C",
    fence      bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    wanted_by  text COLLATE "C"
) WITH (fillfactor = 50);

-- Nodes of this service. `mac` covers name, address and certificate: nobody who only writes here can pose as one.
CREATE TABLE node (
    name               text COLLATE "C" PRIMARY KEY,
    url                text COLLATE "C" NOT NULL,
    certificate_sha256 text COLLATE "C" NOT NULL,
    seen_at            timestamptz,
    mac                bytea NOT NULL
) WITH (fillfactor = 50);

-- Leaves of the service's own ledger, shipped from the node that writes it: `entries` of them from number `first` on.
CREATE TABLE ledger_segment (
    first   bigint PRIMARY KEY,
    entries bigint NOT NULL,
    leaves  bytea NOT NULL
);
ALTER TABLE ledger_segment ALTER leaves SET STORAGE EXTERNAL;

-- The signed head of the service's ledger as last shipped: one row.
CREATE TABLE ledger_note (
    id   bigint PRIMARY KEY DEFAULT 0 CHECK (id = 0),
    note bytea NOT NULL
) WITH (fillfactor = 50);

-- Entries for the service's ledger from nodes that do not write it, sealed.
CREATE TABLE service_outbox (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry bytea NOT NULL
);
