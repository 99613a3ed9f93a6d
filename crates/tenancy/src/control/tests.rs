//! One suite for both stores: what holds for the file holds for the server.

mod house;
mod nodes;

use std::time::Instant;

use super::*;
use crate::keyring::Keyring;
use crate::place::RowsPlace;
use crate::rows::{Place as RowsAt, Store};
use crate::usage::Usage;
use house::House;

/// Each of these on the file and on the server.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod on_file {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&super::House::on_file()).await;
            })*
        }

        mod on_server {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(house) = super::House::on_server().await else { return };
                super::$test(&house).await;
                house.drop().await;
            })*
        }
    };
}

on_both! {
    tenants_come_and_go
    credentials_are_issued_used_and_revoked
    tickets_are_claimed_once
    a_sweep_is_due_once_and_is_not_lost
    erasures_certificates_and_small_values
    keys_under_an_older_epoch_are_not_stored
    keys_are_replaced_only_as_they_were_seen
    hours_of_use_are_added_once
    revoked_credentials_do_not_pile_up
    edited_rows_are_refused
    a_row_put_back_does_not_add_up
    a_row_removed_does_not_add_up
    thousands_of_tenants_are_rewrapped_and_the_old_epoch_destroyed
    figures_of_making_a_tenant
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn tenant(text: &str) -> TenantRow {
    TenantRow {
        id: TenantId::random().unwrap(),
        name: name(text),
        state: TenantState::Active,
        created_at: 1,
        slot: 0,
        limits: "{}".into(),
        placement: "{}".into(),
        epoch_generation: 0,
    }
}

fn credential(id: &str, tenant: Option<TenantId>) -> CredentialRow {
    CredentialRow {
        id: id.into(),
        kind: if tenant.is_some() { CredentialKind::Member } else { CredentialKind::Operator },
        tenant,
        principal: "ann".into(),
        secret_mac: [7; 32],
        scopes: "[]".into(),
        expires_at: Some(99),
        created_at: 2,
        created_by: "operator".into(),
        revoked_at: None,
        last_used_at: None,
        name: "laptop".into(),
    }
}

async fn insert(house: &House, control: &Control, text: &str) -> (TenantRow, KeyRows) {
    let row = tenant(text);
    let (_, keys) = Keyring::create(&house.place.root, row.id, 1).unwrap();
    let first = credential(&format!("first-{text}"), Some(row.id));
    (control.tenant_insert(&row, &keys, Some(&first)).await.unwrap(), keys)
}

fn integrity<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Integrity(_)))
}

async fn tenants_come_and_go(house: &House) {
    let control = house.control().await;
    let (blue, keys) = insert(house, &control, "blue").await;
    let (amber, _) = insert(house, &control, "amber").await;
    assert_eq!((blue.slot, amber.slot), (1, 2), "slot 0 is the service's");
    assert_eq!(control.tenant_by_name(&name("blue")).await.unwrap().unwrap(), blue);
    assert_eq!(control.tenant_by_id(amber.id).await.unwrap().unwrap(), amber);
    assert_eq!(control.keys_of(blue.id).await.unwrap(), {
        let mut keys = keys;
        keys.data.sort_by_key(|row| (row.purpose.name(), row.n));
        keys
    });
    assert_eq!(control.credentials_of(Some(blue.id)).await.unwrap(), [credential("first-blue", Some(blue.id))]);
    let taken = control.tenant_insert(&tenant("blue"), &KeyRows::default(), None).await;
    assert!(matches!(taken, Err(Error::Conflict(_))));
    let page = async |after: Option<&str>| {
        let after = after.map(name);
        control.tenants_page(after.as_ref(), 1).await.unwrap().into_iter().map(|row| row.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (page(None).await, page(Some("amber")).await, page(Some("blue")).await),
        (vec!["amber".into()], vec!["blue".into()], vec![])
    );

    control.tenant_set_limits(blue.id, "{\"objects\":1}").await.unwrap();
    control.tenant_set_state(blue.id, TenantState::Suspended).await.unwrap();
    let changed = control.tenant_by_id(blue.id).await.unwrap().unwrap();
    assert_eq!((changed.state, changed.epoch_generation), (TenantState::Suspended, blue.epoch_generation + 2));
    assert_eq!((changed.limits.as_str(), changed.placement.as_str()), ("{\"objects\":1}", blue.placement.as_str()));
    let pooled = |placement: &mut Placement| {
        placement.rows = RowsPlace::Pooled;
        Ok(())
    };
    control.tenant_place(blue.id, None, pooled).await.unwrap();
    let moved = control.tenant_by_id(blue.id).await.unwrap().unwrap();
    assert_eq!((Placement::parse(&moved.placement).unwrap().rows, moved.epoch_generation), (RowsPlace::Pooled, blue.epoch_generation + 3));

    control.tenant_set_state(blue.id, TenantState::Erasing).await.unwrap();
    assert!(control.tenant_set_state(blue.id, TenantState::Active).await.is_err(), "there is no way back");
    assert_eq!(control.credentials_destroy(blue.id).await.unwrap(), 1);
    control.tenant_set_state(blue.id, TenantState::Erased).await.unwrap();
    assert!(!control.tenant_by_id(blue.id).await.unwrap().unwrap().name.as_str().contains("blue"), "the name is gone too");
    assert!(control.tenant_set_state(blue.id, TenantState::Erasing).await.is_err(), "nor from the end");
    assert!(control.tenant_by_name(&name("blue")).await.unwrap().is_none());
    assert_eq!(control.tenants_count().await.unwrap(), 1);
    let (again, _) = insert(house, &control, "blue").await;
    assert!(again.id != blue.id && again.slot == 3, "a re-used name reaches nothing old");
    control.close().await.unwrap();
    drop(control);
    assert_eq!(house.control().await.tenants_count().await.unwrap(), 2);
}

async fn credentials_are_issued_used_and_revoked(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    let (red, _) = insert(house, &control, "red").await;
    control.credential_insert(&credential("op", None)).await.unwrap();
    assert!(matches!(control.credential_insert(&credential("op", Some(red.id))).await, Err(Error::Conflict(_))));
    assert_eq!(control.credentials_of(None).await.unwrap().len(), 1);
    control.credential_touch("op", 50);
    control.credential_touch("op", 40);
    control.flush().await.unwrap();
    assert_eq!(control.credential_by_id("op").await.unwrap().unwrap().last_used_at, Some(50));
    assert!(!control.credential_revoke(Some(red.id), "first-blue", 60).await.unwrap(), "another tenant's");
    assert!(!control.credential_revoke(None, "first-blue", 60).await.unwrap(), "nor the operator's");
    assert!(control.credential_revoke(Some(blue.id), "first-blue", 60).await.unwrap());
    assert!(!control.credential_revoke(Some(blue.id), "first-blue", 61).await.unwrap(), "once");
    assert_eq!(control.credential_by_id("first-blue").await.unwrap().unwrap().revoked_at, Some(60));
    control.credential_insert(&credential("second-red", Some(red.id))).await.unwrap();
    assert_eq!(control.credentials_revoke_of(red.id, "ann", 70).await.unwrap(), 2);
    assert_eq!(control.credentials_destroy(red.id).await.unwrap(), 2);
    assert!(control.credential_by_id("second-red").await.unwrap().is_none());
    assert!(house.reopened(control).await.is_ok(), "the sum follows every change");
}

async fn a_sweep_is_due_once_and_is_not_lost(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    let at = |due| TicketRow {
        id: "blue/deleted".into(),
        tenant: blue.id,
        kind: SWEEP.into(),
        principal: "ann".into(),
        created_at: due,
        claimed_by: None,
        attempts: 0,
    };
    for due in [50, 70, 30] {
        control.sweep_put(&at(due)).await.unwrap();
    }
    assert!(control.sweeps_due(29, 9).await.unwrap().is_empty(), "not before its time");
    assert!(control.tickets_waiting(9).await.unwrap().is_empty(), "it is no job");
    assert_eq!(control.sweeps_due(30, 9).await.unwrap().len(), 1, "one of each tenant, at the earliest time");
    let claimed = control.ticket_claim("blue/deleted", "here").await.unwrap().unwrap();
    assert!(control.sweeps_due(99, 9).await.unwrap().is_empty());
    // Something is deleted while it is swept: what the sweeper says about its end does not count any more.
    control.sweep_put(&at(100)).await.unwrap();
    assert!(!control.ticket_delete(&claimed.id, "here").await.unwrap());
    control.sweep_postpone(&claimed.id, "here", 500).await.unwrap();
    assert_eq!(control.sweeps_due(99, 9).await.unwrap().len(), 1);
    control.ticket_claim("blue/deleted", "there").await.unwrap().unwrap();
    control.sweep_postpone(&claimed.id, "there", 500).await.unwrap();
    assert_eq!((control.sweeps_due(499, 9).await.unwrap().len(), control.sweeps_due(500, 9).await.unwrap().len()), (0, 1));
}

async fn tickets_are_claimed_once(house: &House) {
    let control = Arc::new(house.control().await);
    let (blue, _) = insert(house, &control, "blue").await;
    for (id, at) in [("later", 2), ("first", 1)] {
        let ticket = TicketRow {
            id: id.into(),
            tenant: blue.id,
            kind: "training".into(),
            principal: "ann".into(),
            created_at: at,
            claimed_by: None,
            attempts: 0,
        };
        control.ticket_insert(&ticket).await.unwrap();
    }
    assert_eq!(control.tickets_waiting(1).await.unwrap()[0].id, "first");
    let mut claims = tokio::task::JoinSet::new();
    for number in 0..20 {
        let control = Arc::clone(&control);
        claims.spawn(async move { control.ticket_claim("first", &format!("worker {number}")).await.unwrap() });
    }
    let won: Vec<TicketRow> = claims.join_all().await.into_iter().flatten().collect();
    assert_eq!((won.len(), won[0].attempts), (1, 1));
    assert_eq!(control.tickets_waiting(9).await.unwrap().len(), 1);
    control.ticket_release("first", "somebody else").await.unwrap();
    assert!(control.ticket_claim("first", "again").await.unwrap().is_none(), "only its claimer gives it back");
    control.ticket_release("first", won[0].claimed_by.as_deref().unwrap()).await.unwrap();
    assert_eq!(control.ticket_claim("first", "again").await.unwrap().unwrap().attempts, 2);
    assert_eq!(control.tickets_release_of(Some("another")).await.unwrap(), 0, "not its own");
    assert_eq!(control.tickets_release_of(Some("again")).await.unwrap(), 1);
    control.ticket_claim("first", "again").await.unwrap().unwrap();
    assert_eq!(control.tickets_release_of(None).await.unwrap(), 1, "everybody's");
    control.ticket_claim("first", "node").await.unwrap().unwrap();
    assert!(!control.ticket_delete("first", "somebody else").await.unwrap());
    assert!(control.ticket_delete("first", "node").await.unwrap() && !control.ticket_delete("first", "node").await.unwrap());
    assert_eq!(control.tickets_destroy(blue.id).await.unwrap(), 1);
}

async fn erasures_certificates_and_small_values(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    let mut erasure = requested(blue.id);
    control.erasure_put(None, &erasure).await.unwrap();
    erasure.state = "frozen".into();
    assert!(matches!(control.erasure_put(None, &erasure).await, Err(Error::Conflict(_))), "ordered once");
    assert!(matches!(control.erasure_put(Some("stopped"), &erasure).await, Err(Error::Conflict(_))), "moved from where it is");
    control.erasure_put(Some("requested"), &erasure).await.unwrap();
    assert_eq!(control.erasure_of(blue.id).await.unwrap().unwrap(), erasure);
    assert_eq!(control.erasures().await.unwrap(), [erasure]);
    control.certificate_put(blue.id, "{}").await.unwrap();
    assert_eq!(control.certificate_of(blue.id).await.unwrap().unwrap(), "{}");
    control.meta_set("bootstrap", b"once").await.unwrap();
    assert_eq!(control.meta("bootstrap").await.unwrap().unwrap(), b"once");
    let row = credential("spender", None);
    assert!(control.credential_insert_spending("bootstrap", &row).await.unwrap());
    assert!(!control.credential_insert_spending("bootstrap", &credential("late", None)).await.unwrap(), "spent once");
    assert!(control.credential_by_id("late").await.unwrap().is_none());
    assert!(control.meta("generation").await.unwrap().is_none(), "the file's own values are out of reach");
    assert!(house.reopened(control).await.is_ok());
}

async fn revoked_credentials_do_not_pile_up(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    let (amber, _) = insert(house, &control, "amber").await;
    for round in 0..i64::from(REVOKED_KEPT_MAX) + 20 {
        let id = format!("c{round:04}");
        control.credential_insert(&credential(&id, Some(blue.id))).await.unwrap();
        assert!(control.credential_revoke(Some(blue.id), &id, 100 + round).await.unwrap());
    }
    let left = control.credentials_of(Some(blue.id)).await.unwrap();
    assert_eq!(left.len(), REVOKED_KEPT_MAX as usize + 1);
    assert!(left.iter().any(|row| row.id == "first-blue" && row.revoked_at.is_none()), "what is not revoked stays");
    let oldest = left.iter().filter_map(|row| row.revoked_at).min();
    assert_eq!(oldest, Some(120), "the newest ones can still be listed");
    assert_eq!(control.credentials_of(Some(amber.id)).await.unwrap().len(), 1);
    control.verifier.verify_all(control.db.read().await.unwrap().sql().unwrap()).await.unwrap();
}

async fn hours_of_use_are_added_once(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    let added = |hour, predictions, mark| UsageAdded { tenant: blue.id, hour, usage: Usage { predictions, ..Usage::default() }, mark };
    let told = async || {
        let hours = control.usage_of(blue.id, 0).await.unwrap();
        hours.iter().map(|bucket| (bucket.at, bucket.usage.predictions)).collect::<Vec<_>>()
    };
    control.usage_add("here", &[added(0, 5, 1), added(3_600, 7, 1)]).await.unwrap();
    // The commit's answer was lost: the same is sent again, also when only a part of it is left to add.
    control.usage_add("here", &[added(0, 5, 1), added(3_600, 7, 1), added(7_200, 1, 1)]).await.unwrap();
    assert_eq!(told().await, [(0, 5), (3_600, 7), (7_200, 1)]);
    control.usage_add("here", &[added(3_600, 7, u64::MAX)]).await.unwrap();
    control.usage_add("there", &[added(3_600, 1, 1)]).await.unwrap();
    assert_eq!(told().await, [(0, 5), (3_600, 15), (7_200, 1)], "as much again is more, and every node counts by itself");
}

async fn keys_are_replaced_only_as_they_were_seen(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    let before = control.keys_of(blue.id).await.unwrap();
    let next = || Keyring::load(&house.place.root, blue.id, &before).unwrap().next_version(&house.place.root, &before, 2).unwrap().1;
    // Two rotations that began with the same keys: what the first one wrapped since, the second one must not lose.
    let (first, second) = (next(), next());
    control.keys_replace(blue.id, None, &before, &first).await.unwrap();
    assert!(matches!(control.keys_replace(blue.id, None, &before, &second).await, Err(Error::Conflict(_))));
    assert!(control.keys_of(blue.id).await.unwrap().is_same(&first));
    control.tenant_set_state(blue.id, TenantState::Erasing).await.unwrap();
    assert!(matches!(control.keys_replace(blue.id, None, &first, &second).await, Err(Error::Conflict(_))));
    control.keys_destroy(blue.id).await.unwrap();
    assert!(matches!(control.keys_replace(blue.id, None, &first, &second).await, Err(Error::Conflict(_))));
    assert_eq!(control.keys_of(blue.id).await.unwrap(), KeyRows::default(), "what was destroyed does not come back");
}

async fn keys_under_an_older_epoch_are_not_stored(house: &House) {
    let control = house.control().await;
    let (blue, blue_keys) = insert(house, &control, "blue").await;
    let late = tenant("late");
    let (_, late_keys) = Keyring::create(&house.place.root, late.id, 1).unwrap();
    // Another node moves to a new epoch while this one still has the old root in memory.
    let epoch = house.place.root.begin_epoch().unwrap();
    control.rewrap_all(&house.place.root, epoch).await.unwrap();
    let refused = |result: Result<()>| matches!(result, Err(Error::Unavailable(_)));
    assert!(refused(control.tenant_insert(&late, &late_keys, None).await.map(drop)), "a new tenant's");
    assert!(control.tenant_by_id(late.id).await.unwrap().is_none(), "nothing of it");
    let stored = control.keys_of(blue.id).await.unwrap();
    assert!(refused(control.keys_replace(blue.id, None, &stored, &blue_keys).await), "a rotation's");
    assert!(refused(control.rewrap_all(&house.place.root, epoch - 1).await.map(drop)), "a re-wrapping back");
    house.place.root.destroy_epochs_before(epoch).unwrap();
    let before = control.keys_of(blue.id).await.unwrap();
    let keyring = Keyring::load(&house.place.root, blue.id, &before).unwrap();
    let (keyring, stored) = keyring.next_version(&house.place.root, &before, 2).unwrap();
    let (_, mut stored) = keyring.retire(&house.place.root, &stored, 1).unwrap();
    stored.tenant[0].epoch = epoch - 1;
    control.keys_replace(blue.id, None, &before, &stored).await.unwrap();
    let (_, late_keys) = Keyring::create(&house.place.root, late.id, 1).unwrap();
    control.tenant_insert(&late, &late_keys, None).await.unwrap();
}

/// Files made before there was a second store hold the sum and the small values beside the numbers.
#[tokio::test]
async fn a_file_of_the_first_version_is_brought_up_to_date() {
    let house = &House::on_file();
    let place = &house.place;
    let verifier = Verifier::new(house.place.root.control_key());
    let blue = TenantRow { slot: 4, epoch_generation: 2, ..tenant("blue") };
    let key = credential("first-blue", Some(blue.id));
    let (blue_mac, key_mac) = (verifier.mac(&blue, 1), verifier.mac(&key, 1));
    let mut sum = blue_mac;
    protected::add(&mut sum, &key_mac);
    let old = {
        let path = house.file();
        let cipher = house.place.root.control_key().derive("control.db", &[]);
        Db::Sqlite(SqliteDb::open(&path, &cipher, place.anchors.slot(0, SERVICE).unwrap(), &MIGRATIONS[..1], Expect::Absent).await.unwrap())
    };
    let mut txn = old.begin().await.unwrap();
    let mut sql = txn.sql().unwrap();
    let statement = "INSERT INTO tenant VALUES ($1, 'blue', 'active', 1, 4, '{}', '{}', 2, 1, $2)";
    sql.execute(statement, &[(&blue.id.0).into(), (&blue_mac).into()]).await.unwrap();
    let statement =
        "INSERT INTO credential VALUES ('first-blue', 'member', $1, 'ann', $2, '[]', 99, 2, 'operator', NULL, NULL, 'laptop', 1, $3)";
    sql.execute(statement, &[(&blue.id.0).into(), (&[7; 32]).into(), (&key_mac).into()]).await.unwrap();
    sql.execute("UPDATE state SET value = $1 WHERE name = 'digest'", &[(&sum).into()]).await.unwrap();
    sql.execute("UPDATE state SET value = 5 WHERE name = 'slot_next'", &[]).await.unwrap();
    sql.execute("INSERT INTO state VALUES ('meta/bootstrap', $1)", &[b"once".into()]).await.unwrap();
    let generation = txn.commit().await.unwrap();
    place.anchors.sync().unwrap();
    old.close(crate::rows::db::Closing::Clean).await.unwrap();
    drop(old);

    let control = house.control().await;
    assert_eq!(control.db.generation(), generation);
    assert_eq!(control.tenant_by_id(blue.id).await.unwrap().unwrap(), blue);
    assert_eq!(control.credential_by_id("first-blue").await.unwrap().unwrap(), key);
    assert_eq!(control.meta("bootstrap").await.unwrap().unwrap(), b"once");
    assert_eq!(insert(house, &control, "amber").await.0.slot, 5);
    assert!(control.credential_insert_spending("bootstrap", &credential("op", None)).await.unwrap());
    assert!(house.reopened(control).await.is_ok(), "the sum came along");
}

fn requested(tenant: TenantId) -> ErasureRow {
    ErasureRow { tenant, state: "requested".into(), requested_at: 1, requested_by: "ann".into(), updated_at: 1, detail: "{}".into() }
}

async fn edited_rows_are_refused(house: &House) {
    // Each and its reverse, so that one place serves for all.
    let edits: [(&'static str, &'static str); 13] = [
        ("UPDATE tenant SET state = 'suspended'", "UPDATE tenant SET state = 'active'"),
        ("UPDATE tenant SET limits = '{\"objects\":1000000}'", "UPDATE tenant SET limits = '{}'"),
        ("UPDATE tenant SET placement = '{\"rows\":\"pooled\"}'", "UPDATE tenant SET placement = '{}'"),
        ("UPDATE tenant SET slot = 9", "UPDATE tenant SET slot = 1"),
        ("UPDATE tenant_key SET state = 'old'", "UPDATE tenant_key SET state = 'active'"),
        ("UPDATE tenant_key SET epoch = 7", "UPDATE tenant_key SET epoch = 1"),
        ("UPDATE data_key SET n = 3 WHERE purpose = 'rows'", "UPDATE data_key SET n = 1 WHERE purpose = 'rows'"),
        ("UPDATE credential SET scopes = '[\"*\"]'", "UPDATE credential SET scopes = '[]'"),
        ("UPDATE credential SET expires_at = NULL", "UPDATE credential SET expires_at = 99"),
        ("UPDATE credential SET principal = 'eve'", "UPDATE credential SET principal = 'ann'"),
        ("UPDATE credential SET kind = 'operator'", "UPDATE credential SET kind = 'member'"),
        ("UPDATE credential SET seq = seq + 1", "UPDATE credential SET seq = seq - 1"),
        ("UPDATE erasure SET state = 'certified'", "UPDATE erasure SET state = 'requested'"),
    ];
    let mut control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    control.erasure_put(None, &requested(blue.id)).await.unwrap();
    for (edit, undo) in edits {
        house.vandal(&control, edit).await;
        let seen = integrity(control.tenant_by_id(blue.id).await)
            || integrity(control.keys_of(blue.id).await)
            || integrity(control.credential_by_id("first-blue").await)
            || integrity(control.erasure_of(blue.id).await);
        assert!(seen, "read after {edit}");
        assert!(integrity(house.reopened(control).await.map(drop)), "open after {edit}");
        control = house.undone(undo).await;
    }
}

async fn a_row_put_back_does_not_add_up(house: &House) {
    let control = house.control().await;
    let (blue, _) = insert(house, &control, "blue").await;
    house.vandal(&control, "CREATE TABLE old AS SELECT * FROM credential").await;
    assert!(control.credential_revoke(Some(blue.id), "first-blue", 60).await.unwrap());
    house.vandal(&control, "DELETE FROM credential").await;
    house.vandal(&control, "INSERT INTO credential SELECT * FROM old").await;
    // The old row is authentic by itself: only the sum knows.
    assert_eq!(control.credential_by_id("first-blue").await.unwrap().unwrap().revoked_at, None);
    assert!(integrity(house.reopened(control).await.map(drop)));
}

async fn a_row_removed_does_not_add_up(house: &House) {
    let control = house.control().await;
    insert(house, &control, "blue").await;
    house.vandal(&control, "DELETE FROM credential").await;
    assert!(integrity(house.reopened(control).await.map(drop)));
}

#[tokio::test]
async fn an_old_control_file_is_refused() {
    let house = &House::on_file();
    let control = house.control().await;
    insert(house, &control, "blue").await;
    control.close().await.unwrap();
    drop(control);
    let old = std::fs::read(house.file()).unwrap();
    let control = house.control().await;
    insert(house, &control, "red").await;
    let newest = control.db.generation();
    control.close().await.unwrap();
    drop(control);
    std::fs::write(house.file(), old).unwrap();
    assert!(integrity(house.open().await.map(drop)), "by its hash");
    house.place.anchors.slot(0, SERVICE).unwrap().generation(newest).unwrap();
    assert!(integrity(house.open().await.map(drop)), "by its generation");
    std::fs::remove_file(house.file()).unwrap();
    assert!(integrity(house.open().await.map(drop)), "a lost file is not made anew");
}

async fn thousands_of_tenants_are_rewrapped_and_the_old_epoch_destroyed(house: &House) {
    let tenants = if house.is_server() { 1_000 } else { 10_000 };
    let control = house.control().await;
    let (erased, old_keys) = insert(house, &control, "erased").await;
    let mut one = None;
    let mut tx = control.begin().await.unwrap();
    for slot in 2..=tenants {
        let row = TenantRow { slot, ..tenant(&format!("t{slot}")) };
        let (_, keys) = Keyring::create(&house.place.root, row.id, 1).unwrap();
        assert!(tx.tenant_add(&row).await.unwrap());
        tx.keys_write(row.id, &keys).await.unwrap();
        one = Some((row.id, keys));
    }
    tx.commit().await.unwrap();

    assert!(control.keys_destroy(erased.id).await.unwrap());
    let epoch = house.place.root.begin_epoch().unwrap();
    let begun = Instant::now();
    assert_eq!(control.rewrap_all(&house.place.root, epoch).await.unwrap(), tenants - 1);
    println!("re-wrap of {} tenants: {:?}", tenants - 1, begun.elapsed());
    assert_eq!(control.rewrap_all(&house.place.root, epoch).await.unwrap(), 0, "done once");
    house.place.root.destroy_epochs_before(epoch).unwrap();

    let (id, before) = one.unwrap();
    let keys = control.keys_of(id).await.unwrap();
    assert!(Keyring::load(&house.place.root, id, &keys).is_ok());
    assert!(Keyring::load(&house.place.root, id, &before).is_err(), "an old copy does not open, even a survivor's");
    assert!(Keyring::load(&house.place.root, erased.id, &old_keys).is_err(), "the erased tenant's old copy does not open");
    let begun = Instant::now();
    assert!(house.reopened(control).await.is_ok());
    println!("unclean open with {tenants} tenants: {:?}", begun.elapsed());
}

async fn figures_of_making_a_tenant(house: &House) {
    let control = house.control().await;
    let mut times = Vec::new();
    for number in 0..50 {
        let begun = Instant::now();
        let row = tenant(&format!("t{number}"));
        let (keys, stored) = Keyring::create(&house.place.root, row.id, 1).unwrap();
        let row = control.tenant_insert(&row, &stored, Some(&credential(&format!("c{number}"), Some(row.id)))).await.unwrap();
        let anchor = house.place.anchors.slot(row.slot, row.id).unwrap();
        let store = Store::create(&house.place.dir.path().join(row.id.hex()), RowsAt::File, Arc::new(keys), anchor).await.unwrap();
        times.push(begun.elapsed());
        drop(store);
    }
    times.sort();
    println!("make a tenant (control rows, folders, rows.db): p50 {:?}, p98 {:?}", times[25], times[48]);
    let begun = Instant::now();
    for _ in 0..200 {
        control.credential_by_id("c1").await.unwrap().unwrap();
    }
    println!("credential by id: {:?} each", begun.elapsed() / 200);
}
