use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use serde::Deserialize;

use super::*;
use crate::act::{DatasetRead, DatasetWrite, LedgerRead};
use crate::blobs::Objects;
use crate::blobs::tests::home::{config, server};
use crate::place::{ObjectsPlace, S3Credentials};
use crate::rows::postgres::tests::{Scratch, scratch};
use crate::rows::{Place, Record, Store};
use crate::{BlobId, Filter, Identity, KernelConfig, LedgerView, Limits, Presented, Report, StoresConfig, Tenant, TenantSpec};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    name: String,
    text: String,
}

impl Record for Note {
    const KIND: &'static str = "note";
    fn key(&self) -> String {
        self.name.clone()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("text", self.text.clone())]
    }
}

fn note(name: &str, text: &str) -> Note {
    Note { name: name.into(), text: text.into() }
}

async fn put(store: &Store, name: &str, text: &str) {
    let mut tx = store.tx().await.unwrap();
    tx.put(&note(name, text)).await.unwrap();
    tx.usage_add("notes", 1).await.unwrap();
    tx.commit_with(Some(name.into())).await.unwrap();
}

#[tokio::test]
async fn rows_move_while_they_are_used() {
    let place = crate::rows::tests::Place::new();
    let tenant = place.tenant(1);
    let store = Arc::new(tenant.create().await);
    for number in 0..450 {
        put(&store, &format!("n{number:04}"), "before").await;
    }
    let mut blob = store.blob_writer().unwrap();
    blob.write(Bytes::from(vec![7; 300_000])).await.unwrap();
    let blob = blob.finish().await.unwrap();
    let mut tx = store.tx().await.unwrap();
    let blob = tx.attach(blob).await.unwrap();
    tx.commit_with(None).await.unwrap();

    // To another folder, objects too.
    let dir = place.dir.path().join("elsewhere");
    std::fs::create_dir(&dir).unwrap();
    let objects = Objects::folder(&dir.join("blobs"));
    objects.ensure().unwrap();
    let anchor = place.anchors.detached(tenant.id, Anchor::default());
    let home = Home::target(&dir, Place::File, objects, &tenant.keys, anchor).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        async move {
            let mut done = 0;
            while !stop.load(Ordering::Acquire) {
                put(&store, &format!("n{:04}", done * 7 % 600), &format!("changed {done}")).await;
                if done % 5 == 0 {
                    let mut tx = store.tx().await.unwrap();
                    tx.delete::<Note>(&format!("n{:04}", done * 3 % 600)).await.unwrap();
                    tx.commit_with(None).await.unwrap();
                }
                done += 1;
                tokio::task::yield_now().await;
            }
            done
        }
    });
    let first = store.pass(&home).await.unwrap();
    assert!(first.differences >= 400 && !first.equal(), "{first:?}");
    store.pass(&home).await.unwrap();
    let paused = store.pause().await.unwrap();
    store.pass(&home).await.unwrap();
    let proof = store.pass(&home).await.unwrap();
    assert!(proof.equal(), "{proof:?}");
    assert_eq!(proof.amount.objects, 1);
    store.conclude(&home).await.unwrap();
    let generation = store.parting().await.unwrap();
    let waiting = store.outbox_pending(u32::MAX).await.unwrap();
    let old = store.moved(home).unwrap();
    drop(paused);
    let left = old.leave().await.unwrap();
    assert_eq!(left.generation, generation);
    assert!(left.clean.is_some());

    // The writer goes on at the new place, and notices nothing.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.store(true, Ordering::Release);
    writer.await.unwrap();
    put(&store, "after", "after").await;
    assert_eq!(store.rows().require::<Note>("after").await.unwrap().text, "after");
    assert_eq!(store.rows().find::<Note>("text", "after", None, 10).await.unwrap().records.len(), 1, "look-ups came along");
    assert_eq!(store.rows().blob(blob).await.unwrap().read_at(0, 300_000).await.unwrap(), vec![7; 300_000]);
    assert!(dir.join("blobs").read_dir().unwrap().next().is_some(), "objects lie at the new place");
    let outbox = store.outbox_pending(u32::MAX).await.unwrap();
    assert!(waiting.iter().all(|entry| outbox.contains(entry)), "entries on their way came along");
    assert_eq!(store.outbox_settled().await.unwrap(), outbox, "what became of a commit is asked where the rows are");
    assert!(store.anchor().unwrap().now().generation > generation);
    store.close().await.unwrap();
    let anchor = place.anchors.slot(1, tenant.id).unwrap();
    assert!(anchor.now().generation > generation && anchor.now().clean.is_some(), "the new place is anchored");
    let again = Store::open(&dir, Place::File, Arc::clone(&tenant.keys), anchor).await.unwrap();
    assert_eq!(again.rows().require::<Note>("after").await.unwrap().text, "after");
}

/// A service with one tenant, `a`; its other tiers are on the test server.
struct House {
    dir: tempfile::TempDir,
    database: Scratch,
    stores: StoresConfig,
}

impl House {
    async fn new() -> Option<Self> {
        let database = scratch().await?;
        database.open().await;
        let stores = StoresConfig { postgres: Some(database.config.clone()), ..StoresConfig::default() };
        Some(Self { dir: tempfile::tempdir().unwrap(), database, stores })
    }

    /// With buckets for objects.
    async fn with_buckets() -> Option<Self> {
        let s3 = config(server()?, S3Credentials::Iam { endpoint: None });
        let house = Self::new().await?;
        Some(Self { stores: StoresConfig { s3: Some(s3), ..house.stores.clone() }, ..house })
    }

    /// How many sealed objects lie in the tenant's folder.
    fn in_folder(&self, id: TenantId) -> usize {
        let Ok(folders) = std::fs::read_dir(self.file(id).with_file_name("blobs")) else { return 0 };
        folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
    }

    async fn open(&self) -> Kernel {
        let config = || KernelConfig {
            data_dir: self.dir.path().join("data"),
            keystore_dir: self.dir.path().join("keystore"),
            issuer: "https://localhost".to_owned(),
            stores_open_max: 4,
            limits: Limits { requests_per_second: 1_000_000, ..Limits::default() },
            stores: self.stores.clone(),
        };
        loop {
            match Kernel::open(config()).await {
                Ok((kernel, _)) => return kernel,
                // The one before is just letting go.
                Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// The operator and the tenant's key.
    async fn people(&self, kernel: &Kernel) -> (Operator, String) {
        let operator = operator_of(kernel, &self.operator_key(kernel).await).await;
        let spec = TenantSpec { name: name(), admin: "ada".parse().unwrap(), limits: None, tier: None };
        let key = operator.tenant_create(spec).await.unwrap().admin_key.secret().to_owned();
        (operator, key)
    }

    /// The first one; later the same.
    async fn operator_key(&self, kernel: &Kernel) -> String {
        let kept = self.dir.path().join("operator.key");
        if !kept.exists() {
            let secret = std::fs::read_to_string(self.dir.path().join("keystore/bootstrap.secret")).unwrap();
            let issued = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await.unwrap();
            std::fs::write(&kept, issued.secret()).unwrap();
        }
        std::fs::read_to_string(kept).unwrap()
    }

    /// The tenant's rows in its file.
    fn file(&self, id: TenantId) -> std::path::PathBuf {
        self.dir.path().join("data/tenants").join(id.hex()).join("rows.db")
    }

    async fn end(self) {
        self.database.drop().await;
    }
}

fn name() -> Name {
    "a".parse().unwrap()
}

async fn operator_of(kernel: &Kernel, key: &str) -> Operator {
    match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await.unwrap() {
        Identity::Operator(operator) => operator,
        Identity::Tenant(_) => panic!("an operator's key"),
    }
}

async fn tenant(kernel: &Kernel, key: &str) -> Result<Tenant> {
    match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await? {
        Identity::Tenant(caller) => kernel.open_tenant(caller).await,
        Identity::Operator(_) => panic!("a tenant's key"),
    }
}

async fn note_put(kernel: &Kernel, key: &str, name: &str, text: &str) -> Result<()> {
    let permit = tenant(kernel, key).await?.allow::<DatasetWrite>(name)?;
    let mut tx = permit.tx().await?;
    tx.put(&note(name, text)).await?;
    tx.commit().await?;
    permit.finish().map(drop)
}

async fn note_get(kernel: &Kernel, key: &str, name: &str) -> Result<Option<Note>> {
    let permit = tenant(kernel, key).await?.allow::<DatasetRead>(name)?;
    let found = permit.rows().get::<Note>(name).await?;
    permit.finish().map(|_| found)
}

async fn blob_put(kernel: &Kernel, key: &str, bytes: &'static [u8]) -> BlobId {
    let permit = tenant(kernel, key).await.unwrap().allow::<DatasetWrite>("x").unwrap();
    let mut upload = permit.blob_create().await.unwrap();
    upload.write(Bytes::from_static(bytes)).await.unwrap();
    let stored = upload.finish().await.unwrap();
    let mut tx = permit.tx().await.unwrap();
    let id = tx.attach(stored).await.unwrap();
    tx.commit().await.unwrap();
    id
}

async fn blob_get(kernel: &Kernel, key: &str, id: BlobId) -> Bytes {
    let permit = tenant(kernel, key).await.unwrap().allow::<DatasetRead>("x").unwrap();
    permit.blobs().open(id).await.unwrap().read_at(0, 1 << 20).await.unwrap()
}

async fn settled(operator: &Operator) -> MoveInfo {
    for _ in 0..3000 {
        let info = operator.move_info(&name()).await.unwrap();
        if info.state != MoveState::Copying {
            return info;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the move does not end");
}

/// Requests of the writing acts in the ledger, in order.
async fn ledger(kernel: &Kernel, key: &str) -> (u64, Vec<String>) {
    let permit = tenant(kernel, key).await.unwrap().allow::<LedgerRead>("").unwrap();
    let view = permit.ledger();
    let filter = Filter { act: Some("DatasetWrite".to_owned()), oldest_first: true, ..Filter::default() };
    let found = view.search(&filter, usize::MAX).unwrap();
    (exported(&view, None).await.size, found.entries.into_iter().map(|entry| entry.entry.unwrap().resource).collect())
}

/// The ledger's export verifies, and continues what was remembered.
async fn exported(view: &LedgerView, remembered: Option<&Report>) -> Report {
    view.fresh().await.unwrap();
    let mut bytes = Vec::new();
    view.export(&mut bytes).unwrap();
    let remembered = remembered.map(|report| (report.size, &*report.root));
    crate::verify_export(&mut bytes.as_slice(), &export_origin(&bytes), &view.vkey(), remembered).unwrap()
}

fn export_origin(export: &[u8]) -> String {
    let line = export.split(|byte| *byte == b'\n').next().unwrap();
    serde_json::from_slice::<serde_json::Value>(line).unwrap()["origin"].as_str().unwrap().to_owned()
}

async fn id_of(kernel: &Kernel) -> TenantId {
    kernel.0.control.tenant_by_name(&name()).await.unwrap().unwrap().id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_through_all_tiers_and_back_under_load() {
    let Some(house) = House::new().await else { return };
    let kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let id = id_of(&kernel).await;
    for number in 0..300 {
        note_put(&kernel, &key, &format!("old{number}"), "x").await.unwrap();
    }
    let blob = blob_put(&kernel, &key, b"an object").await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = tokio::spawn({
        let (kernel, key, stop, written) = (kernel.clone(), key.clone(), Arc::clone(&stop), Arc::clone(&written));
        async move {
            while !stop.load(Ordering::Acquire) {
                let number = written.load(Ordering::Acquire);
                let name = format!("new{number}");
                note_put(&kernel, &key, &name, "y").await.unwrap();
                written.fetch_add(1, Ordering::AcqRel);
                assert!(note_get(&kernel, &key, &name).await.unwrap().is_some(), "reads what it wrote: {name}");
                assert!(note_get(&kernel, &key, "old7").await.unwrap().is_some());
            }
        }
    });
    for tier in [Tier::Pooled, Tier::Schema, Tier::Database, Tier::Embedded, Tier::Schema, Tier::Embedded] {
        let before = written.load(Ordering::Acquire);
        operator.tenant_move(&name(), tier).await.unwrap();
        assert!(matches!(operator.tenant_move(&name(), tier).await, Err(Error::Conflict(_))), "one at a time");
        let info = settled(&operator).await;
        assert_eq!((info.state, info.to), (MoveState::Moved, tier), "{info:?}");
        assert!(info.records >= 300 && info.objects == 1 && info.passes >= 2, "{info:?}");
        println!("to {tier}: {} records, {} passes, writers waited {} us", info.records, info.passes, info.pause_micros.unwrap());
        assert_eq!(operator.tenant(&name()).await.unwrap().storage, tier);
        let finished = operator.move_finish(&name()).await.unwrap();
        assert_eq!(finished.state, MoveState::Settled);
        assert_eq!(house.file(id).exists(), tier == Tier::Embedded, "nothing of the old place is left");
        assert!(written.load(Ordering::Acquire) > before, "the tenant worked all the while");
    }
    stop.store(true, Ordering::Release);
    load.await.unwrap();
    let written = written.load(Ordering::Acquire);
    assert_eq!(blob_get(&kernel, &key, blob).await, "an object");
    let check = async |kernel: &Kernel| {
        for number in 0..written {
            assert!(note_get(kernel, &key, &format!("new{number}")).await.unwrap().is_some(), "new{number}");
        }
    };
    check(&kernel).await;
    let (size, entries) = ledger(&kernel, &key).await;
    assert_eq!(entries.len() as u64, 301 + written, "one entry a write, none twice");
    assert_eq!(entries.iter().filter(|entry| entry.starts_with("dataset:new")).collect::<HashSet<_>>().len() as u64, written);
    kernel.close().await.unwrap();
    drop(operator);
    drop(kernel);
    let kernel = house.open().await;
    check(&kernel).await;
    assert!(ledger(&kernel, &key).await.0 > size);
    drop(kernel);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_moves_along() {
    let Some(house) = House::new().await else { return };
    let mut kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let (id, mut operator, mut written) = (id_of(&kernel).await, Some(operator), Vec::new());
    let mut remembered: Option<Report> = None;
    for (round, tier) in [Tier::Pooled, Tier::Embedded, Tier::Schema, Tier::Pooled, Tier::Embedded].into_iter().enumerate() {
        let by = operator.take().unwrap();
        for back in [false, true, false] {
            written.push(format!("round{round}{back}{}", written.len()));
            note_put(&kernel, &key, written.last().unwrap(), "x").await.unwrap();
            if back {
                by.move_rollback(&name()).await.unwrap();
                assert_eq!(settled(&by).await.state, MoveState::Settled);
            } else {
                by.tenant_move(&name(), tier).await.unwrap();
                assert_eq!(settled(&by).await.state, MoveState::Moved);
            }
            let view = tenant(&kernel, &key).await.unwrap().allow::<LedgerRead>("").unwrap().ledger();
            remembered = Some(exported(&view, remembered.as_ref()).await);
        }
        by.move_finish(&name()).await.unwrap();
        drop(by);
        kernel.close().await.unwrap();
        drop(kernel);
        if tier != Tier::Embedded {
            // Its copy goes where the rows go: the node's own is not needed.
            std::fs::remove_dir_all(house.file(id).with_file_name("ledger")).unwrap();
        }
        kernel = house.open().await;
        operator = Some(operator_of(&kernel, &house.operator_key(&kernel).await).await);
        let view = tenant(&kernel, &key).await.unwrap().allow::<LedgerRead>("").unwrap().ledger();
        remembered = Some(exported(&view, remembered.as_ref()).await);
        let entries = ledger(&kernel, &key).await.1;
        let expected: Vec<_> = written.iter().map(|name| format!("dataset:{name}")).collect();
        assert_eq!(entries, expected, "{tier}");
    }
    drop(operator);
    kernel.close().await.unwrap();
    drop(kernel);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_taken_back_with_what_was_written_since() {
    let Some(house) = House::new().await else { return };
    let kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let id = id_of(&kernel).await;
    for tier in [Tier::Pooled, Tier::Schema, Tier::Database] {
        note_put(&kernel, &key, "before", "x").await.unwrap();
        note_put(&kernel, &key, "gone", "x").await.unwrap();
        operator.tenant_move(&name(), tier).await.unwrap();
        assert_eq!(settled(&operator).await.state, MoveState::Moved);
        assert!(house.file(id).exists(), "the old place is kept");
        assert!(matches!(operator.tenant_move(&name(), Tier::Embedded).await, Err(Error::Conflict(_))), "finish or take back first");
        note_put(&kernel, &key, "since", tier.name()).await.unwrap();
        let permit = tenant(&kernel, &key).await.unwrap().allow::<DatasetWrite>("gone").unwrap();
        let mut tx = permit.tx().await.unwrap();
        assert!(tx.delete::<Note>("gone").await.unwrap());
        tx.commit().await.unwrap();
        drop(permit);
        operator.move_rollback(&name()).await.unwrap();
        let info = settled(&operator).await;
        assert_eq!((info.state, info.to, &info.error), (MoveState::Settled, Tier::Embedded, &None));
        assert_eq!(note_get(&kernel, &key, "since").await.unwrap().unwrap().text, tier.name());
        assert!(note_get(&kernel, &key, "before").await.unwrap().is_some());
        assert!(note_get(&kernel, &key, "gone").await.unwrap().is_none());
        assert!(matches!(operator.move_rollback(&name()).await, Err(Error::Conflict(_))));
        assert!(matches!(operator.move_finish(&name()).await, Err(Error::Conflict(_))));
    }
    drop((operator, kernel));
    house.end().await;
}

#[tokio::test]
async fn a_kept_place_that_was_changed_is_not_moved_back_to() {
    let Some(house) = House::new().await else { return };
    let kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    note_put(&kernel, &key, "x", "x").await.unwrap();
    operator.tenant_move(&name(), Tier::Pooled).await.unwrap();
    assert_eq!(settled(&operator).await.state, MoveState::Moved);
    let file = house.file(id_of(&kernel).await);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    operator.move_rollback(&name()).await.unwrap();
    let info = settled(&operator).await;
    assert_eq!(info.state, MoveState::Failed, "{info:?}");
    assert!(note_get(&kernel, &key, "x").await.unwrap().is_some(), "the tenant works where it is");
    assert_eq!(operator.move_finish(&name()).await.unwrap().state, MoveState::Settled);
    drop((operator, kernel));
    house.end().await;
}

const STOPS: [(Step, Between); 6] = [
    (Step::Noted, |step| stop(step, Step::Noted)),
    (Step::Made, |step| stop(step, Step::Made)),
    (Step::Copied, |step| stop(step, Step::Copied)),
    (Step::Proven, |step| stop(step, Step::Proven)),
    (Step::CutOver, |step| stop(step, Step::CutOver)),
    (Step::Left, |step| stop(step, Step::Left)),
];

fn stop(step: Step, at: Step) -> Result<()> {
    if step == at || step == Step::Failed { Err(Error::Unavailable("stopped here")) } else { Ok(()) }
}

#[tokio::test]
async fn dead_between_any_two_steps_nothing_is_lost() {
    let Some(house) = House::new().await else { return };
    let mut kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let operator_key = operator.key_issue(&"o".parse().unwrap(), now_micros() + 3_600_000_000).await.unwrap().secret().to_owned();
    drop(operator);
    let id = id_of(&kernel).await;
    for (number, (at, between)) in STOPS.into_iter().enumerate() {
        let (from, to) = if number % 2 == 0 { (Tier::Embedded, Tier::Schema) } else { (Tier::Embedded, Tier::Pooled) };
        note_put(&kernel, &key, &format!("n{number}"), "x").await.unwrap();
        let mut mover = Mover { kernel: kernel.clone(), id, hold: None, between };
        let target = kernel.placement_new(id, to).unwrap();
        assert!(mover.go(Way::There(target), now_micros()).await.is_err(), "stopped at {at:?}");
        drop(mover);
        drop(kernel);
        kernel = house.open().await;
        let operator = operator_of(&kernel, &operator_key).await;
        for number in 0..=number {
            assert!(note_get(&kernel, &key, &format!("n{number}")).await.unwrap().is_some(), "n{number} after {at:?}");
        }
        note_put(&kernel, &key, "after", "x").await.unwrap();
        let info = settled(&operator).await;
        if matches!(at, Step::CutOver | Step::Left) {
            assert_eq!((info.state, info.to), (MoveState::Moved, to), "done, from the cut-over on");
            operator.move_rollback(&name()).await.unwrap();
            let info = settled(&operator).await;
            assert_eq!((info.state, info.to), (MoveState::Settled, from), "{info:?}");
        } else {
            assert_eq!((info.state, info.to), (MoveState::Settled, from), "as if it had never begun, after {at:?}");
            let placement = Placement::parse(&kernel.0.control.tenant_by_id(id).await.unwrap().unwrap().placement).unwrap();
            assert_eq!(placement.next, None, "the half-made copy is gone");
        }
        assert!(note_get(&kernel, &key, "after").await.unwrap().is_some());
    }
    drop(kernel);
    house.end().await;
}

/// What the tenant's own key is answered at a bucket that it had.
async fn opens(kernel: &Kernel, id: TenantId, place: &ObjectsPlace) -> bool {
    let probes = kernel.0.stores.s3().unwrap().verify_isolation(id, place, &[]).await.unwrap();
    probes.iter().any(|probe| probe.own && probe.act == "list" && probe.answer == "200")
}

async fn placement(kernel: &Kernel) -> Placement {
    Placement::parse(&kernel.0.control.tenant_by_name(&name()).await.unwrap().unwrap().placement).unwrap()
}

/// Writes objects, reads them back, and removes every third one, until it is stopped. What is there then.
async fn objects_loaded(kernel: Kernel, key: String, stop: Arc<AtomicBool>) -> Vec<(BlobId, Vec<u8>)> {
    let mut there: Vec<(BlobId, Vec<u8>)> = Vec::new();
    for number in 0u32.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let content: Vec<u8> = number.to_le_bytes().iter().copied().cycle().take(150_000).collect();
        let permit = tenant(&kernel, &key).await.unwrap().allow::<DatasetWrite>("x").unwrap();
        let mut upload = permit.blob_create().await.unwrap();
        upload.write(Bytes::from(content.clone())).await.unwrap();
        let stored = upload.finish().await.unwrap();
        let mut tx = permit.tx().await.unwrap();
        let id = tx.attach(stored).await.unwrap();
        if number % 3 == 2 {
            let (old, _) = there.remove(there.len() / 2);
            tx.detach(old).await.unwrap();
        }
        tx.commit().await.unwrap();
        drop(permit);
        assert_eq!(blob_get(&kernel, &key, id).await, content);
        there.push((id, content));
        // A busy person, not a flood: how long a move takes depends on how much there is.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_move_between_folder_and_bucket_under_load() {
    let Some(house) = House::with_buckets().await else { return };
    let kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let id = id_of(&kernel).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(objects_loaded(kernel.clone(), key.clone(), Arc::clone(&stop)));
    let mut buckets: Vec<ObjectsPlace> = Vec::new();
    for tier in [Tier::Pooled, Tier::Schema, Tier::Embedded, Tier::Database, Tier::Embedded] {
        // Begun before the cut-over, finished and attached after it.
        let permit = tenant(&kernel, &key).await.unwrap().allow::<DatasetWrite>("late").unwrap();
        let mut late = permit.blob_create().await.unwrap();
        late.write(Bytes::from(vec![5; 400_000])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        operator.tenant_move(&name(), tier).await.unwrap();
        let info = settled(&operator).await;
        assert_eq!((info.state, info.to), (MoveState::Moved, tier), "{info:?}");
        println!("to {tier}: {} objects, {} passes, writers waited {} us", info.objects, info.passes, info.pause_micros.unwrap());
        late.write(Bytes::from(vec![6; 400_000])).await.unwrap();
        let late = late.finish().await.unwrap();
        let mut tx = permit.tx().await.unwrap();
        let late = tx.attach(late).await.unwrap();
        tx.commit().await.unwrap();
        drop(permit);
        let now = placement(&kernel).await;
        assert_eq!(now.objects == ObjectsPlace::Folder, tier == Tier::Embedded);
        let before = now.previous.as_ref().unwrap().objects.clone();
        assert_eq!(before == now.objects, tier == Tier::Schema, "between tiers of the server objects stay where they are");
        operator.move_finish(&name()).await.unwrap();
        assert_eq!(blob_get(&kernel, &key, late).await, [vec![5; 400_000], vec![6; 400_000]].concat());
        if tier != Tier::Embedded {
            assert_eq!(house.in_folder(id), 0, "nothing is left in the folder");
            buckets.push(now.objects);
        } else {
            assert!(!opens(&kernel, id, &before).await, "bucket and access key are gone");
        }
    }
    stop.store(true, Ordering::Release);
    let there = load.await.unwrap();
    assert!(there.len() > 5);
    for (blob, content) in &there {
        assert_eq!(blob_get(&kernel, &key, *blob).await, *content);
    }
    // The late ones, and no other: what was deleted while it moved is deleted where it went.
    assert_eq!(house.in_folder(id), there.len() + 5);
    assert!(buckets[0] == buckets[1] && buckets[1] != buckets[2]);
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let kernel = house.open().await;
    for (blob, content) in &there {
        assert_eq!(blob_get(&kernel, &key, *blob).await, *content);
    }
    drop(kernel);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_come_back_with_a_move_that_is_taken_back() {
    let Some(house) = House::with_buckets().await else { return };
    let kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let id = id_of(&kernel).await;
    let before = blob_put(&kernel, &key, b"before").await;
    operator.tenant_move(&name(), Tier::Pooled).await.unwrap();
    assert_eq!(settled(&operator).await.state, MoveState::Moved);
    let bucket = placement(&kernel).await.objects;
    assert!(opens(&kernel, id, &bucket).await && house.in_folder(id) == 1, "both places are kept");
    let since = blob_put(&kernel, &key, b"since").await;
    let permit = tenant(&kernel, &key).await.unwrap().allow::<DatasetRead>("x").unwrap();
    let begun = permit.blobs().open(since).await.unwrap();
    drop(permit);
    operator.move_rollback(&name()).await.unwrap();
    let info = settled(&operator).await;
    assert_eq!((info.state, info.to, &info.error), (MoveState::Settled, Tier::Embedded, &None));
    assert_eq!((blob_get(&kernel, &key, before).await, blob_get(&kernel, &key, since).await), ("before".into(), "since".into()));
    assert!(!opens(&kernel, id, &bucket).await && house.in_folder(id) == 2);
    assert!(begun.read_at(0, 5).await.is_err(), "a download from the place that is gone ends");
    drop((operator, kernel));
    house.end().await;
}

/// Whoever took the tenant over gives up what was being made; the one who made it must not cut over to it any more.
#[tokio::test]
async fn a_target_that_was_given_up_is_not_cut_over_to() {
    let Some(house) = House::with_buckets().await else { return };
    let kernel = house.open().await;
    let (operator, key) = house.people(&kernel).await;
    let id = id_of(&kernel).await;
    let blob = blob_put(&kernel, &key, b"an object").await;
    let target = Placement {
        objects: kernel.objects_place_new(id, &name(), Tier::Pooled).await.unwrap(),
        ..kernel.placement_new(id, Tier::Pooled).unwrap()
    };
    let mover = Mover::new(&kernel, id);
    mover.note(&target).await.unwrap();
    kernel.rows_place_make(id, &target).await.unwrap();
    let other = |placement: &mut Placement| {
        placement.next.as_mut().unwrap().left = Some(Left::default());
        Ok(())
    };
    kernel.0.control.tenant_place(id, None, other).await.unwrap();
    let cut = mover.carry(&target, now_micros()).await;
    assert!(matches!(cut, Err(Error::Conflict(_))), "{cut:?}");
    mover.forget().await.unwrap();
    assert_eq!(placement(&kernel).await, Placement::default());
    assert!(!opens(&kernel, id, &target.objects).await);
    assert_eq!(blob_get(&kernel, &key, blob).await, "an object");
    drop((operator, kernel));
    house.end().await;
}

/// Moves the tenant to this tier, or back to the place that was kept, and calls `parted` right before the cut-over.
pub(crate) async fn moved(kernel: &Kernel, id: TenantId, to: Option<Tier>, parted: fn()) -> Result<()> {
    static PARTED: Mutex<fn()> = Mutex::new(|| {});
    *PARTED.lock() = parted;
    let between: Between = |step| {
        if step == Step::Parted {
            let parted = *PARTED.lock();
            parted();
        }
        Ok(())
    };
    let row = kernel.0.control.tenant_by_id(id).await?.unwrap();
    let way = match to {
        Some(to) => Way::There(kernel.placement_new(id, to)?),
        None => Way::Back(*Placement::parse(&row.placement)?.previous.unwrap()),
    };
    Mover { kernel: kernel.clone(), id, hold: None, between }.go(way, now_micros()).await
}

/// As many moves as may be under way are, of tenants that nobody knows; or none.
pub(crate) fn moves_full(kernel: &Kernel, full: bool) {
    kernel.0.moves.0.lock().clear();
    while full && kernel.0.moves.begin(TenantId::random().unwrap(), Tier::Pooled, Tier::Schema).is_ok() {}
}
