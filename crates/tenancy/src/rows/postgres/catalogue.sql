-- What is wrong with a database, from its own catalogue: (object, fault, remedy) for each fault, no row if all is well.
-- $1 uses schema `insula`, $2 schema `insula_control`, and the role `t_…` the schema of its name. $3: the database is one tenant's own.

WITH RECURSIVE
-- Our schemas, each with the one role that uses it.
ours AS (
    SELECT oid AS schema, nspname, nspowner,
        CASE nspname WHEN 'insula' THEN $1 WHEN 'insula_control' THEN $2 ELSE nspname::text END AS role
    FROM pg_namespace WHERE nspname IN ('insula', 'insula_control') OR nspname ~ '^t_[0-9a-f]{32}$'
),
-- Roles that serve; a tenant's own if its schema is here, or its database belongs to whom this one belongs to. Roles are known to a whole
-- server, and another service may have tenants there too.
service AS (
    SELECT * FROM pg_roles WHERE rolname IN ($1, $2) OR rolname IN (SELECT nspname FROM ours WHERE nspname ~ '^t_')
        OR NOT $3 AND rolname ~ '^d_[0-9a-f]{32}$' AND EXISTS (
        SELECT FROM pg_database WHERE datname = rolname AND datdba = (SELECT datdba FROM pg_database WHERE datname = current_database()))
),
relation AS (
    SELECT pg_class.oid AS id, pg_class.*, ours.*, format('%I.%I', nspname, relname) AS object, nspname <> 'insula_control' AS tenants
    FROM pg_class JOIN ours ON relnamespace = schema
),
-- Tables with rows of tenants.
held AS (
    SELECT * FROM relation WHERE tenants AND relkind IN ('r', 'p')
),
-- Views that read our tables, also through other views, wherever they are.
reader AS (
    SELECT ev_class FROM pg_rewrite
        JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid AND refclassid = 'pg_class'::regclass
        JOIN relation ON refobjid = id WHERE ev_class <> id
    UNION
    SELECT pg_rewrite.ev_class FROM pg_rewrite
        JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid AND refclassid = 'pg_class'::regclass
        JOIN reader ON refobjid = reader.ev_class WHERE pg_rewrite.ev_class <> reader.ev_class
),
-- Roles that somebody gave rights to; PUBLIC is 0.
named AS (
    SELECT oid, quote_ident(rolname) AS name, rolname::text AS role FROM pg_roles UNION ALL SELECT 0, 'PUBLIC', NULL
),
fault (object, fault, remedy) AS (
    -- Every table is there, in every place.
    SELECT format('%I.%I', nspname, expected), 'is missing', 'run `insula migrate`, or restore it from your backup'
    FROM ours CROSS JOIN unnest(ARRAY['record', 'field', 'blob', 'outbox', 'state', 'ledger_segment', 'ledger_note']) expected
    WHERE nspname <> 'insula_control' AND NOT EXISTS (SELECT FROM held WHERE held.schema = ours.schema AND relname = expected)
    UNION ALL
    -- Row-level security, for the owner too.
    SELECT object, 'has no forced row-level security', format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', object)
    FROM held WHERE NOT (relrowsecurity AND relforcerowsecurity)
    UNION ALL
    -- One policy, ours. A second one would open what the first one closes.
    SELECT object, 'has other policies than the one on `tenant`', 'drop them, and create the one of migrations/rows/postgres/0001.sql'
    FROM held WHERE (
        SELECT count(*) <> 1 OR NOT coalesce(bool_and(polpermissive AND polcmd = '*' AND polroles = '{0}'
            AND pg_get_expr(polqual, polrelid) = '(tenant = (current_setting(''insula.tenant''::text))::uuid)'
            AND pg_get_expr(polwithcheck, polrelid) = '(tenant = (current_setting(''insula.tenant''::text))::uuid)'), false)
        FROM pg_policy WHERE polrelid = id)
    UNION ALL
    -- The column that everything hangs on.
    SELECT object, 'has no column `tenant` of type uuid, not null, whose default is the tenant of the transaction',
        format('ALTER TABLE %s ALTER tenant SET NOT NULL, ALTER tenant SET DEFAULT current_setting(''insula.tenant'')::uuid', object)
    FROM held WHERE NOT EXISTS (
        SELECT FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = id AND attname = 'tenant' AND NOT attisdropped AND atttypid = 'uuid'::regtype AND attnotnull AND attgenerated = ''
            AND pg_get_expr(adbin, adrelid) = '(current_setting(''insula.tenant''::text))::uuid')
    UNION ALL
    -- A default may call anything, and a counter is shared.
    SELECT object, format('has a default on the column `%s`', attname), format('ALTER TABLE %s ALTER %I DROP DEFAULT', object, attname)
    FROM held JOIN pg_attribute ON attrelid = id
    WHERE attname <> 'tenant' AND attnum > 0 AND NOT attisdropped AND (atthasdef OR attidentity <> '' OR attgenerated <> '')
    UNION ALL
    -- Listings are ordered as bytes.
    SELECT object, format('has a column `%s` that is not ordered as bytes', attname),
        format('ALTER TABLE %s ALTER %I TYPE text COLLATE "C"', object, attname)
    FROM relation JOIN pg_attribute ON attrelid = id
    WHERE relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped AND attcollation <> 0 AND attcollation <> 'pg_catalog."C"'::regcollation
    UNION ALL
    SELECT object, 'has no primary key', 'restore it from migrations/rows/postgres/0001.sql'
    FROM held WHERE NOT EXISTS (SELECT FROM pg_index WHERE indrelid = id AND indisprimary AND indisvalid)
    UNION ALL
    -- A key that does not start with the tenant tells one tenant what another one has.
    SELECT object, format('has the key `%s` that does not start with `tenant`', indexrelid::regclass), format('DROP INDEX %s', indexrelid::regclass)
    FROM held JOIN pg_index ON indrelid = id LEFT JOIN pg_attribute ON attrelid = id AND attnum = indkey[0]
    WHERE (indisunique OR indisprimary OR indisexclusion) AND attname IS DISTINCT FROM 'tenant'
    UNION ALL
    SELECT object, format('has the exclusion constraint `%s` that does not compare `tenant` for equality first', conname),
        format('ALTER TABLE %s DROP CONSTRAINT %I', object, conname)
    FROM held JOIN pg_constraint ON conrelid = id AND contype = 'x' JOIN pg_operator ON pg_operator.oid = conexclop[1]
    WHERE oprname <> '='
    UNION ALL
    -- A foreign key looks for its row without row-level security.
    SELECT object, format('has the foreign key `%s` that does not start with `tenant` on both sides', conname),
        format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
    FROM held JOIN pg_constraint ON id IN (conrelid, confrelid) AND contype = 'f'
        JOIN pg_attribute own ON own.attrelid = conrelid AND own.attnum = conkey[1]
        JOIN pg_attribute other ON other.attrelid = confrelid AND other.attnum = confkey[1]
    WHERE own.attname <> 'tenant' OR other.attname <> 'tenant' OR (SELECT count(*) FROM held WHERE id IN (conrelid, confrelid)) <>
        CASE WHEN conrelid = confrelid THEN 1 ELSE 2 END
    UNION ALL
    -- A view reads with its owner's rights, unless it is told to read with the reader's.
    SELECT pg_class.oid::regclass::text, 'is a view that reads with its owner''s rights',
        format('ALTER VIEW %s SET (security_invoker = true), or drop it', pg_class.oid::regclass)
    FROM pg_class WHERE relkind = 'v' AND (relnamespace IN (SELECT schema FROM ours) OR oid IN (SELECT ev_class FROM reader))
        AND NOT EXISTS (SELECT FROM pg_options_to_table(reloptions) WHERE option_name = 'security_invoker' AND option_value::bool)
    UNION ALL
    SELECT pg_class.oid::regclass::text, 'is a materialized view: it holds rows of all tenants without row-level security',
        format('DROP MATERIALIZED VIEW %s', pg_class.oid::regclass)
    FROM pg_class WHERE relkind = 'm' AND (relnamespace IN (SELECT schema FROM ours) OR oid IN (SELECT ev_class FROM reader))
    UNION ALL
    -- Neither foreign tables, sequences nor types of rows; the service's own tables may number their rows.
    SELECT object, format('is a %s: none has a place here', CASE relkind WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence' ELSE 'row type' END),
        format('DROP %s %s', CASE relkind WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'S' THEN 'SEQUENCE' ELSE 'TYPE' END, object)
    FROM relation WHERE relkind NOT IN ('r', 'p', 'i', 'I', 'v', 'm', 't') AND (tenants OR relkind <> 'S')
    UNION ALL
    -- A part that is asked by its own name does not ask the whole's policy.
    SELECT pg_class.oid::regclass::text, format('is a partition or child of %s', inhparent::regclass),
        format('ALTER TABLE %s NO INHERIT %s, or DETACH PARTITION', pg_class.oid::regclass, inhparent::regclass)
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE relkind IN ('r', 'p', 'f') AND (inhrelid IN (SELECT id FROM relation) OR inhparent IN (SELECT id FROM relation))
    UNION ALL
    SELECT object, 'is not logged: a crash of the server empties it', format('ALTER TABLE %s SET LOGGED', object)
    FROM relation WHERE relkind IN ('r', 'p') AND relpersistence <> 'p'
    UNION ALL
    -- An owner switches row-level security off.
    SELECT object, format('belongs to `%s`, not to the owner of its schema', pg_get_userbyid(relowner)),
        format('ALTER TABLE %s OWNER TO %s', object, quote_ident(pg_get_userbyid(nspowner)))
    FROM relation WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND relowner <> nspowner
    UNION ALL
    SELECT format('schema %I', nspname), format('belongs to `%s`, a role that serves', service.rolname),
        format('ALTER SCHEMA %I OWNER TO the role of owner_url', nspname)
    FROM ours JOIN service ON service.oid = nspowner
    UNION ALL
    -- Triggers and rules see rows, and may write them elsewhere.
    SELECT object, format('has the trigger `%s`', tgname), format('DROP TRIGGER %I ON %s', tgname, object)
    FROM relation JOIN pg_trigger ON tgrelid = id WHERE NOT tgisinternal
    UNION ALL
    SELECT object, format('has the rule `%s`', rulename), format('DROP RULE %I ON %s', rulename, object)
    FROM relation JOIN pg_rewrite ON ev_class = id WHERE rulename <> '_RETURN'
    UNION ALL
    -- Functions in our schemas would come first in the search for a name.
    SELECT pg_proc.oid::regprocedure::text, 'is a function in a schema of ours: none has a place here',
        format('DROP ROUTINE %s', pg_proc.oid::regprocedure)
    FROM pg_proc JOIN ours ON pronamespace = schema
    UNION ALL
    -- Elsewhere, those that run with their owner's rights.
    SELECT pg_proc.oid::regprocedure::text, 'is a function that runs with its owner''s rights, and a role that serves may call it',
        format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC and from that role, or drop it', pg_proc.oid::regprocedure)
    FROM pg_proc WHERE prosecdef AND pronamespace NOT IN (SELECT schema FROM ours)
        AND pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner)))
            WHERE privilege_type = 'EXECUTE' AND (grantee = 0 OR grantee IN (SELECT oid FROM service)))
    UNION ALL
    -- And those with the rights of whom our tables belong to: whoever calls one is the owner for as long as it runs.
    SELECT pg_proc.oid::regprocedure::text, format('runs with the rights of `%s`, whom our tables belong to, and %s may call it', pg_get_userbyid(proowner), name),
        format('REVOKE EXECUTE ON ROUTINE %s FROM %s, or drop it', pg_proc.oid::regprocedure, name)
    FROM pg_proc CROSS JOIN aclexplode(coalesce(proacl, acldefault('f', proowner))) JOIN named ON named.oid = grantee
    WHERE prosecdef AND proowner IN (SELECT nspowner FROM ours) AND pronamespace NOT IN (SELECT schema FROM ours)
        AND grantee NOT IN (0, proowner) AND grantee NOT IN (SELECT oid FROM service)
    UNION ALL
    -- A check, and an index on an expression or on some rows, call what somebody wrote, with the values of every row.
    SELECT object, format('has the check `%s`', conname), format('ALTER TABLE %s DROP CONSTRAINT %I', object, conname)
    FROM held JOIN pg_constraint ON conrelid = id AND contype = 'c'
    UNION ALL
    SELECT object, format('has the index `%s` on an expression or a condition', indexrelid::regclass), format('DROP INDEX %s', indexrelid::regclass)
    FROM held JOIN pg_index ON indrelid = id WHERE indexprs IS NOT NULL OR indpred IS NOT NULL
    UNION ALL
    -- Rights: reading and writing for the one role, none for anybody else.
    SELECT object, format('grants %s to %s', string_agg(privilege_type, ', '), name),
        format('REVOKE %s ON %s FROM %s', string_agg(privilege_type, ', '), object, name)
    FROM relation CROSS JOIN aclexplode(relacl) JOIN named ON named.oid = grantee
    WHERE grantee <> relowner AND (named.role IS DISTINCT FROM relation.role OR is_grantable OR NOT privilege_type = ANY (
        CASE WHEN object = 'insula_control.migration' THEN '{SELECT}' ELSE '{SELECT,INSERT,UPDATE,DELETE}' END::text[]))
    GROUP BY object, name
    UNION ALL
    SELECT object, format('grants rights on its column `%s`', attname), format('REVOKE ALL (%I) ON %s FROM %s', attname, object, name)
    FROM relation JOIN pg_attribute ON attrelid = id CROSS JOIN aclexplode(attacl) JOIN named ON named.oid = grantee
    WHERE grantee <> relowner AND NOT attisdropped
    UNION ALL
    SELECT format('schema %I', ours.nspname), format('grants %s to %s', privilege_type, name),
        format('REVOKE %s ON SCHEMA %I FROM %s', privilege_type, ours.nspname, name)
    FROM ours JOIN pg_namespace ON pg_namespace.oid = schema CROSS JOIN aclexplode(nspacl) JOIN named ON named.oid = grantee
    WHERE grantee <> ours.nspowner AND (named.role IS DISTINCT FROM ours.role OR is_grantable OR privilege_type <> 'USAGE')
    UNION ALL
    -- Nobody who serves makes anything anywhere.
    SELECT format('schema %I', nspname), format('lets %s create tables and functions', name), format('REVOKE CREATE ON SCHEMA %I FROM %s', nspname, name)
    FROM pg_namespace CROSS JOIN aclexplode(coalesce(nspacl, acldefault('n', nspowner))) JOIN named ON named.oid = grantee
    WHERE privilege_type = 'CREATE' AND (grantee = 0 OR grantee IN (SELECT oid FROM service)) AND pg_namespace.oid NOT IN (SELECT schema FROM ours)
    UNION ALL
    SELECT format('database %I', datname), format('grants %s to %s', privilege_type, name),
        format('REVOKE %s ON DATABASE %I FROM %s', privilege_type, datname, name)
    FROM pg_database CROSS JOIN aclexplode(coalesce(datacl, acldefault('d', datdba))) JOIN named ON named.oid = grantee
    WHERE datname = current_database() AND grantee <> datdba AND ($3 OR grantee = 0 OR grantee IN (SELECT oid FROM service))
        AND (privilege_type <> 'CONNECT' OR $3 AND named.role IS DISTINCT FROM $1)
    UNION ALL
    SELECT CASE WHEN nspname IS NULL THEN 'the role ' ELSE 'schema ' END || quote_ident(coalesce(nspname, pg_get_userbyid(defaclrole))),
        format('will grant %s to %s on what is made next', privilege_type, name),
        format('ALTER DEFAULT PRIVILEGES FOR ROLE %I … REVOKE %s', pg_get_userbyid(defaclrole), privilege_type)
    FROM pg_default_acl LEFT JOIN ours ON defaclnamespace = schema CROSS JOIN aclexplode(defaclacl) JOIN named ON named.oid = grantee
    WHERE grantee <> defaclrole AND defaclobjtype IN ('r', 'n', 'S')
        AND (schema IS NOT NULL OR defaclnamespace = 0 AND defaclrole IN (SELECT nspowner FROM ours))
    UNION ALL
    -- Rows leave through a publication without row-level security.
    SELECT format('publication %I', pubname), 'publishes rows of tenants', format('DROP PUBLICATION %I', pubname)
    FROM pg_publication WHERE puballtables OR EXISTS (SELECT FROM pg_publication_rel JOIN relation ON prrelid = id WHERE prpubid = pg_publication.oid)
        OR EXISTS (SELECT FROM pg_publication_namespace JOIN ours ON pnnspid = schema WHERE pnpubid = pg_publication.oid)
    UNION ALL
    -- A tenant that is set by itself would be set where none should be.
    SELECT coalesce('the role ' || quote_ident(rolname), 'database ' || quote_ident(datname), 'the server, for all roles,'),
        format('sets `%s`', split_part(setting, '=', 1)),
        format('ALTER ROLE or DATABASE … RESET %s', split_part(setting, '=', 1))
    FROM pg_db_role_setting LEFT JOIN pg_roles ON pg_roles.oid = setrole LEFT JOIN pg_database ON pg_database.oid = setdatabase CROSS JOIN unnest(setconfig) setting
    WHERE (setting ~* '^insula\.' OR lower(split_part(setting, '=', 1)) IN ('role', 'row_security', 'search_path', 'session_replication_role'))
        AND (setrole = 0 OR setrole IN (SELECT oid FROM service)) AND (setdatabase = 0 OR datname = current_database())
    UNION ALL
    SELECT 'the server', 'sets `insula.tenant` by itself', 'remove it from postgresql.conf' WHERE coalesce(current_setting('insula.tenant', true), '') <> ''
    UNION ALL
    SELECT format('the role %I', rolname), 'serves and has a right that goes beyond it (superuser, bypassrls, createrole, createdb, replication)',
        format('ALTER ROLE %I NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION', rolname)
    FROM service WHERE rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication
    UNION ALL
    SELECT format('the role %I', service.rolname), format('serves and is a member of `%s`', other.rolname), format('REVOKE %I FROM %I', other.rolname, service.rolname)
    FROM service JOIN pg_auth_members ON member = service.oid JOIN pg_roles other ON other.oid = roleid
    UNION ALL
    -- Who is a member of a role that serves may become it. The owner may: it makes these roles.
    SELECT format('the role %I', service.rolname), format('serves, and `%s` is a member of it', other.rolname), format('REVOKE %I FROM %I', service.rolname, other.rolname)
    FROM service JOIN pg_auth_members ON roleid = service.oid JOIN pg_roles other ON other.oid = member
    WHERE NOT other.rolsuper AND other.oid NOT IN (SELECT nspowner FROM ours)
        AND other.oid <> (SELECT datdba FROM pg_database WHERE datname = current_database())
)
SELECT object, fault, remedy FROM fault ORDER BY object, fault
