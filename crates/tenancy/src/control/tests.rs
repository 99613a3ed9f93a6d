use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::keyring::Keyring;
use crate::rows::tests::Place;
use crate::rows::{Place as RowsAt, Store};

async fn control(place: &Place) -> Control {
    Control::open(&file(place), &place.root, &place.anchors).await.unwrap()
}

fn file(place: &Place) -> PathBuf {
    place.dir.path().join("control.db")
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

async fn insert(place: &Place, control: &Control, text: &str) -> (TenantRow, KeyRows) {
    let row = tenant(text);
    let (_, keys) = Keyring::create(&place.root, row.id, 1).unwrap();
    let first = credential(&format!("first-{text}"), Some(row.id));
    (control.tenant_insert(&row, &keys, Some(&first)).await.unwrap(), keys)
}

/// Runs a statement as somebody who can write the open file but knows no MAC key.
async fn vandal(control: &Control, sql: &'static str) {
    let mut txn = control.db.begin().await.unwrap();
    assert!(txn.sql().unwrap().execute(sql, &[]).await.unwrap() > 0, "{sql}");
    txn.commit().await.unwrap();
}

/// The process dies: nothing is closed cleanly, all commits are there.
async fn reopen_unclean(place: &Place, control: Control) -> Result<Control> {
    let newest = control.db.generation();
    control.db.close().await.unwrap();
    place.anchors.slot(0, SERVICE).unwrap().generation(newest).unwrap();
    drop(control);
    Control::open(&file(place), &place.root, &place.anchors).await
}

fn integrity<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Integrity(_)))
}

#[tokio::test]
async fn tenants_come_and_go() {
    let place = Place::new();
    let control = control(&place).await;
    let (blue, keys) = insert(&place, &control, "blue").await;
    let (amber, _) = insert(&place, &control, "amber").await;
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
    control.tenant_set_placement(blue.id, "{\"rows\":\"pooled\"}").await.unwrap();
    let moved = control.tenant_by_id(blue.id).await.unwrap().unwrap();
    assert_eq!((moved.placement.as_str(), moved.epoch_generation), ("{\"rows\":\"pooled\"}", blue.epoch_generation + 3));

    control.tenant_set_state(blue.id, TenantState::Erasing).await.unwrap();
    assert!(control.tenant_set_state(blue.id, TenantState::Active).await.is_err(), "there is no way back");
    assert_eq!(control.credentials_destroy(blue.id).await.unwrap(), 1);
    control.tenant_set_state(blue.id, TenantState::Erased).await.unwrap();
    assert!(!control.tenant_by_id(blue.id).await.unwrap().unwrap().name.as_str().contains("blue"), "the name is gone too");
    assert!(control.tenant_set_state(blue.id, TenantState::Erasing).await.is_err(), "nor from the end");
    assert!(control.tenant_by_name(&name("blue")).await.unwrap().is_none());
    assert_eq!(control.tenants_count().await.unwrap(), 1);
    let (again, _) = insert(&place, &control, "blue").await;
    assert!(again.id != blue.id && again.slot == 3, "a re-used name reaches nothing old");
    control.close().await.unwrap();
    drop(control);
    assert_eq!(super::Control::open(&file(&place), &place.root, &place.anchors).await.unwrap().tenants_count().await.unwrap(), 2);
}

#[tokio::test]
async fn credentials_are_issued_used_and_revoked() {
    let place = Place::new();
    let control = control(&place).await;
    let (blue, _) = insert(&place, &control, "blue").await;
    let (red, _) = insert(&place, &control, "red").await;
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
    assert!(reopen_unclean(&place, control).await.is_ok(), "the sum follows every change");
}

#[tokio::test]
async fn tickets_are_claimed_once() {
    let place = Place::new();
    let control = Arc::new(control(&place).await);
    let (blue, _) = insert(&place, &control, "blue").await;
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
    assert!(!control.ticket_delete("first", "somebody else").await.unwrap());
    assert_eq!(control.tickets_release_of(None).await.unwrap(), 1);
    control.ticket_claim("first", "node").await.unwrap().unwrap();
    assert!(control.ticket_delete("first", "node").await.unwrap() && !control.ticket_delete("first", "node").await.unwrap());
    assert_eq!(control.tickets_destroy(blue.id).await.unwrap(), 1);
}

#[tokio::test]
async fn erasures_certificates_and_small_values() {
    let place = Place::new();
    let control = control(&place).await;
    let (blue, _) = insert(&place, &control, "blue").await;
    let mut erasure = ErasureRow {
        tenant: blue.id,
        state: "requested".into(),
        requested_at: 1,
        requested_by: "ann".into(),
        updated_at: 1,
        detail: "{}".into(),
    };
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
    assert!(reopen_unclean(&place, control).await.is_ok());
}

#[tokio::test]
async fn keys_under_an_older_epoch_are_not_stored() {
    let place = Place::new();
    let control = control(&place).await;
    let (blue, blue_keys) = insert(&place, &control, "blue").await;
    let late = tenant("late");
    let (_, late_keys) = Keyring::create(&place.root, late.id, 1).unwrap();
    // Another node moves to a new epoch while this one still has the old root in memory.
    let epoch = place.root.begin_epoch().unwrap();
    control.rewrap_all(&place.root, epoch).await.unwrap();
    let refused = |result: Result<()>| matches!(result, Err(Error::Unavailable(_)));
    assert!(refused(control.tenant_insert(&late, &late_keys, None).await.map(drop)), "a new tenant's");
    assert!(control.tenant_by_id(late.id).await.unwrap().is_none(), "nothing of it");
    assert!(refused(control.keys_replace(blue.id, &blue_keys).await), "a rotation's");
    assert!(refused(control.rewrap_all(&place.root, epoch - 1).await.map(drop)), "a re-wrapping back");
    place.root.destroy_epochs_before(epoch).unwrap();
    let stored = control.keys_of(blue.id).await.unwrap();
    let keyring = Keyring::load(&place.root, blue.id, &stored).unwrap();
    let (keyring, stored) = keyring.next_version(&place.root, &stored, 2).unwrap();
    let (_, mut stored) = keyring.retire(&place.root, &stored, 1).unwrap();
    stored.tenant[0].epoch = epoch - 1;
    control.keys_replace(blue.id, &stored).await.unwrap();
    let (_, late_keys) = Keyring::create(&place.root, late.id, 1).unwrap();
    control.tenant_insert(&late, &late_keys, None).await.unwrap();
}

/// Files made before there was a second store hold the sum and the small values beside the numbers.
#[tokio::test]
async fn a_file_of_the_first_version_is_brought_up_to_date() {
    let place = Place::new();
    let verifier = Verifier::new(place.root.control_key());
    let blue = TenantRow { slot: 4, epoch_generation: 2, ..tenant("blue") };
    let key = credential("first-blue", Some(blue.id));
    let (blue_mac, key_mac) = (verifier.mac(&blue, 1), verifier.mac(&key, 1));
    let mut sum = blue_mac;
    protected::add(&mut sum, &key_mac);
    let old = {
        let path = file(&place);
        let cipher = place.root.control_key().derive("control.db", &[]);
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
    old.close().await.unwrap();
    drop(old);

    let control = control(&place).await;
    assert_eq!(control.db.generation(), generation);
    assert_eq!(control.tenant_by_id(blue.id).await.unwrap().unwrap(), blue);
    assert_eq!(control.credential_by_id("first-blue").await.unwrap().unwrap(), key);
    assert_eq!(control.meta("bootstrap").await.unwrap().unwrap(), b"once");
    assert_eq!(insert(&place, &control, "amber").await.0.slot, 5);
    assert!(control.credential_insert_spending("bootstrap", &credential("op", None)).await.unwrap());
    assert!(reopen_unclean(&place, control).await.is_ok(), "the sum came along");
}

#[tokio::test]
async fn edited_rows_are_refused() {
    let edits: [&'static str; 12] = [
        "UPDATE tenant SET state = 'suspended'",
        "UPDATE tenant SET limits = '{\"objects\":1000000}'",
        "UPDATE tenant SET slot = 9",
        "UPDATE tenant_key SET state = 'old'",
        "UPDATE tenant_key SET epoch = 7",
        "UPDATE data_key SET n = 3",
        "UPDATE credential SET scopes = '[\"*\"]'",
        "UPDATE credential SET expires_at = NULL",
        "UPDATE credential SET principal = 'eve'",
        "UPDATE credential SET tenant = NULL, kind = 'operator'",
        "UPDATE credential SET seq = seq + 1",
        "UPDATE erasure SET state = 'certified'",
    ];
    for sql in edits {
        let place = Place::new();
        let control = control(&place).await;
        let (blue, _) = insert(&place, &control, "blue").await;
        let erasure = ErasureRow {
            tenant: blue.id,
            state: "requested".into(),
            requested_at: 1,
            requested_by: "ann".into(),
            updated_at: 1,
            detail: "{}".into(),
        };
        control.erasure_put(None, &erasure).await.unwrap();
        vandal(&control, sql).await;
        let seen = integrity(control.tenant_by_id(blue.id).await)
            || integrity(control.keys_of(blue.id).await)
            || integrity(control.credential_by_id("first-blue").await)
            || integrity(control.erasure_of(blue.id).await);
        assert!(seen, "read after {sql}");
        assert!(integrity(reopen_unclean(&place, control).await.map(drop)), "open after {sql}");
    }
}

#[tokio::test]
async fn a_row_put_back_or_removed_does_not_add_up() {
    let place = Place::new();
    let control = control(&place).await;
    insert(&place, &control, "blue").await;
    vandal(&control, "CREATE TABLE old AS SELECT * FROM credential").await;
    let blue = control.tenant_by_name(&name("blue")).await.unwrap().unwrap();
    assert!(control.credential_revoke(Some(blue.id), "first-blue", 60).await.unwrap());
    vandal(&control, "INSERT OR REPLACE INTO credential SELECT * FROM old").await;
    // The old row is authentic by itself: only the sum knows.
    assert_eq!(control.credential_by_id("first-blue").await.unwrap().unwrap().revoked_at, None);
    assert!(integrity(reopen_unclean(&place, control).await.map(drop)));

    let place = Place::new();
    let control = super::tests::control(&place).await;
    insert(&place, &control, "blue").await;
    vandal(&control, "DELETE FROM credential").await;
    assert!(integrity(reopen_unclean(&place, control).await.map(drop)));
}

#[tokio::test]
async fn an_old_control_file_is_refused() {
    let place = Place::new();
    let control = control(&place).await;
    insert(&place, &control, "blue").await;
    control.close().await.unwrap();
    drop(control);
    let old = std::fs::read(file(&place)).unwrap();
    let control = super::tests::control(&place).await;
    insert(&place, &control, "red").await;
    let newest = control.db.generation();
    control.close().await.unwrap();
    drop(control);
    std::fs::write(file(&place), old).unwrap();
    let open = async || Control::open(&file(&place), &place.root, &place.anchors).await.map(drop);
    assert!(integrity(open().await), "by its hash");
    place.anchors.slot(0, SERVICE).unwrap().generation(newest).unwrap();
    assert!(integrity(open().await), "by its generation");
    std::fs::remove_file(file(&place)).unwrap();
    assert!(integrity(open().await), "a lost file is not made anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tenants_are_rewrapped_and_the_old_epoch_destroyed() {
    const TENANTS: u64 = 10_000;
    let place = Place::new();
    let control = control(&place).await;
    let (erased, old_keys) = insert(&place, &control, "erased").await;
    let mut one = None;
    let mut tx = control.begin().await.unwrap();
    for slot in 2..=TENANTS {
        let row = TenantRow { slot, ..tenant(&format!("t{slot}")) };
        let (_, keys) = Keyring::create(&place.root, row.id, 1).unwrap();
        assert!(tx.tenant_add(&row).await.unwrap());
        tx.keys_write(row.id, &keys).await.unwrap();
        one = Some((row.id, keys));
    }
    tx.commit().await.unwrap();

    assert!(control.keys_destroy(erased.id).await.unwrap());
    let epoch = place.root.begin_epoch().unwrap();
    let begun = Instant::now();
    assert_eq!(control.rewrap_all(&place.root, epoch).await.unwrap(), TENANTS - 1);
    println!("re-wrap of {} tenants: {:?}", TENANTS - 1, begun.elapsed());
    assert_eq!(control.rewrap_all(&place.root, epoch).await.unwrap(), 0, "done once");
    place.root.destroy_epochs_before(epoch).unwrap();

    let (id, before) = one.unwrap();
    let keys = control.keys_of(id).await.unwrap();
    assert!(Keyring::load(&place.root, id, &keys).is_ok());
    assert!(Keyring::load(&place.root, id, &before).is_err(), "an old copy does not open, even a survivor's");
    assert!(Keyring::load(&place.root, erased.id, &old_keys).is_err(), "the erased tenant's old copy does not open");
    let begun = Instant::now();
    assert!(reopen_unclean(&place, control).await.is_ok());
    println!("unclean open with {TENANTS} tenants: {:?}", begun.elapsed());
}

#[tokio::test]
async fn figures_of_making_a_tenant() {
    let place = Place::new();
    let control = control(&place).await;
    let mut times = Vec::new();
    for number in 0..50 {
        let begun = Instant::now();
        let row = tenant(&format!("t{number}"));
        let (keys, stored) = Keyring::create(&place.root, row.id, 1).unwrap();
        let row = control.tenant_insert(&row, &stored, Some(&credential(&format!("c{number}"), Some(row.id)))).await.unwrap();
        let anchor = place.anchors.slot(row.slot, row.id).unwrap();
        let store = Store::create(&place.dir.path().join(row.id.hex()), RowsAt::File, Arc::new(keys), anchor).await.unwrap();
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
