use std::io::{Seek, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::*;
use crate::act::{DatasetRead, DatasetWrite, QuotaRead, TrainingRun};
use crate::erasure::Compute;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::name::Name;
use crate::operator::Operator;
use crate::rows::contents::Item as Content;
use crate::seal::Key;
use crate::{Filter, Identity, IslandToken, IsolationClass, KernelConfig, Limits, Presented, RequestId, Tenant, TenantSpec};

const KEY: [u8; 32] = [7; 32];

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

/// A service in a folder of its own.
struct House {
    dir: tempfile::TempDir,
    kernel: Kernel,
    operator: Operator,
}

impl House {
    async fn new() -> Self {
        Self::with(Limits { requests_per_second: 1_000_000, ..Limits::default() }).await
    }

    async fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = KernelConfig {
            data_dir: dir.path().join("data"),
            keystore_dir: dir.path().join("keystore"),
            issuer: "https://localhost".to_owned(),
            stores_open_max: 4,
            limits,
            stores: Default::default(),
        };
        let kernel = Kernel::open(config).await.unwrap().0;
        let secret = std::fs::read_to_string(dir.path().join("keystore/bootstrap.secret")).unwrap();
        let key = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await.unwrap();
        let identity = kernel.authenticate(Presented::Bearer(key.secret()), &RequestId::fresh()).await.unwrap();
        let Identity::Operator(operator) = identity else { panic!("an operator's key") };
        Self { dir, kernel, operator }
    }

    async fn tenant_new(&self) -> String {
        let spec = TenantSpec { name: name("a"), admin: name("ada-lovelace"), limits: None, tier: None };
        self.operator.tenant_create(spec).await.unwrap().admin_key.secret().to_owned()
    }

    async fn tenant(&self, key: &str) -> Result<Tenant> {
        match self.kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await? {
            Identity::Tenant(caller) => self.kernel.open_tenant(caller).await,
            Identity::Operator(_) => panic!("a tenant's key"),
        }
    }

    async fn put(&self, key: &str, notes: &[(&str, &str)]) {
        let permit = self.tenant(key).await.unwrap().allow::<DatasetWrite>("x").unwrap();
        let mut tx = permit.tx().await.unwrap();
        for (name, text) in notes {
            tx.put(&Note { name: (*name).to_owned(), text: (*text).to_owned() }).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn get(&self, key: &str, name: &str) -> Option<Note> {
        let permit = self.tenant(key).await.unwrap().allow::<DatasetRead>("x").unwrap();
        permit.rows().get(name).await.unwrap()
    }

    async fn blob_put(&self, key: &str, bytes: Vec<u8>) -> BlobId {
        let permit = self.tenant(key).await.unwrap().allow::<DatasetWrite>("x").unwrap();
        let mut upload = permit.blob_create().await.unwrap();
        upload.write(Bytes::from(bytes)).await.unwrap();
        let stored = upload.finish().await.unwrap();
        let mut tx = permit.tx().await.unwrap();
        let id = tx.attach(stored).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    async fn export(&self) -> (Vec<u8>, ExportInfo) {
        let mut bundle = Vec::new();
        let info = self.operator.export(&name("a"), KEY).await.unwrap().write(&mut bundle).await.unwrap();
        (bundle, info)
    }

    async fn import(&self, as_name: &str, bundle: &[u8], key: [u8; 32]) -> Result<crate::CreatedTenant> {
        self.operator.import(&name(as_name), &mut &*bundle, key).await
    }

    /// Everything that lies in the data folder, but what the service writes for itself.
    fn traces(&self) -> Vec<String> {
        fn walk(dir: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                names.push(entry.display().to_string());
                if entry.is_dir() {
                    walk(&entry, names);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.dir.path().join("data/tenants"), &mut names);
        let others = std::fs::read_dir(self.dir.path().join("data")).unwrap().map(|entry| entry.unwrap().path().display().to_string());
        names.extend(others.filter(|name| name.contains("spool")));
        names.sort();
        names
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn checked(bundle: &[u8], key: [u8; 32]) -> Result<()> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bundle).unwrap();
    file.rewind().unwrap();
    super::import::verify(file, &Key::new(key)).map(drop)
}

/// A service whose tenant `a` has some of everything; its key and its object.
async fn furnished(object_bytes: usize) -> (House, String, BlobId) {
    let house = House::new().await;
    let key = house.tenant_new().await;
    house.put(&key, &[("one", "red"), ("two", "blue"), ("three", "red")]).await;
    let object = house.blob_put(&key, (0..object_bytes).map(|at| (at % 251) as u8).collect()).await;
    (house, key, object)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_taken_out_and_lives_on_elsewhere() {
    let (from, old_key, object) = furnished(300_000).await;
    let (bundle, info) = from.export().await;
    assert_eq!((info.records, info.objects, info.bytes), (4, 1, 300_000), "three notes and a member");
    let clear = |words: &[u8]| bundle.windows(words.len()).any(|bytes| bytes == words);
    // Eight bytes at least: shorter ones are found in so much noise every now and then.
    let words: [&[u8]; 4] = [b"ada-lovelace", b"\"text\":\"blue\"", b"DatasetRead", &[0, 1, 2, 3, 4, 5, 6, 7, 8]];
    for word in words {
        assert!(!clear(word), "{} lies there in clear", word.escape_ascii());
    }

    let to = House::new().await;
    let created = to.import("b", &bundle, KEY).await.unwrap();
    assert_eq!(created.tenant.name, "b");
    let key = created.admin_key.secret();
    assert_eq!(created.admin_key.info.member, "ada-lovelace");
    let row = to.kernel.0.control.tenant_by_name(&name("b")).await.unwrap().unwrap();
    assert!(!to.kernel.0.anchors.untouched(row.slot, row.id).unwrap(), "anchored before anybody opens it");
    assert!(to.tenant(&old_key).await.is_err(), "old keys do not come along");
    assert_eq!(to.get(key, "two").await.unwrap().text, "blue");
    let permit = to.tenant(key).await.unwrap().allow::<DatasetRead>("x").unwrap();
    assert_eq!(permit.rows().find::<Note>("text", "red", None, 10).await.unwrap().records.len(), 2, "look-ups came along");
    let reader = permit.blobs().open(object).await.unwrap();
    let bytes = reader.read_at(0, 400_000).await.unwrap();
    assert!(bytes.len() == 300_000 && bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8), "under its old id");

    // Counters: the former ledger is one object more.
    let used = to.tenant(key).await.unwrap().allow::<QuotaRead>("").unwrap().quota_use().used;
    assert_eq!((used["objects"], used["members"], used["keys"]), (2, 1, 1));

    // The new ledger begins with the old one's name, and the old one is there to be verified.
    let permit = to.tenant(key).await.unwrap().allow::<LedgerRead>("").unwrap();
    let first = permit.ledger().entry(0).unwrap().entry.unwrap();
    let former = permit.former_ledgers().await.unwrap().pop().unwrap();
    assert_eq!((first.act.as_str(), &first.detail["former_ledger"]), ("TenantImport", &former.origin));
    assert_eq!(first.detail["former_ledger_root"], former.root);
    let reader = permit.former_ledger(&former.origin).await.unwrap();
    let export = reader.read_at(0, 1 << 24).await.unwrap();
    let report = crate::verify_export(&mut &export[..], &former.origin, &former.vkey, None).unwrap();
    assert_eq!((report.size, report.root), (former.size, former.root));
    let left = from.tenant(&old_key).await.unwrap().allow::<LedgerRead>("").unwrap();
    let filter = Filter { act: Some("TenantExport".to_owned()), ..Filter::default() };
    assert_eq!(left.ledger().search(&filter, 10).unwrap().entries.len(), 1, "the tenant sees that it was taken out");

    // And on from there.
    to.put(key, &[("four", "green")]).await;
    assert!(matches!(to.import("b", &bundle, KEY).await, Err(Error::Conflict(_))), "the name is taken");
    assert_eq!(to.import("c", &bundle, KEY).await.unwrap().tenant.name, "c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_bundle_is_refused_and_leaves_nothing() {
    let (from, ..) = furnished(150_000).await;
    let (bundle, _) = from.export().await;
    checked(&bundle, KEY).unwrap();
    let refused = |bundle: &[u8], what: &str| match checked(bundle, KEY) {
        Err(Error::Invalid(reason)) => assert!(reason.contains("the bundle"), "{what}: {reason}"),
        Err(error) => panic!("{what}: {error:?}"),
        Ok(()) => panic!("{what}: not refused"),
    };
    let header = bundle.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let statement = bundle[..bundle.len() - 1].iter().rposition(|byte| *byte == b'\n').map_or(bundle.len() - 400, |at| at + 1);
    let all = (0..header + 64).chain((header..bundle.len()).step_by(997)).chain(statement.max(bundle.len() - 500)..bundle.len());
    for at in all {
        for bit in [1, 0x80] {
            let mut changed = bundle.clone();
            changed[at] ^= bit;
            refused(&changed, &format!("byte {at}"));
        }
    }
    for end in [0, 1, header - 1, header, header + 2, header + 4 + 65_552, bundle.len() / 2, bundle.len() - 300, bundle.len() - 1] {
        refused(&bundle[..end], &format!("cut at {end}"));
    }
    for tail in [&b"x"[..], b"\n", b"\0"] {
        refused(&[&bundle, tail].concat(), "extended");
    }
    // Two whole chunks in the other order, one of them twice, one missing.
    let chunk = 4 + 64 * 1024 + 16;
    let (one, two) = (&bundle[header..header + chunk], &bundle[header + chunk..header + 2 * chunk]);
    let (head, tail) = (&bundle[..header], &bundle[header + 2 * chunk..]);
    for (what, parts) in [("swapped", vec![two, one]), ("twice", vec![one, one, two]), ("missing", vec![one]), ("none", vec![])] {
        refused(&[head, &parts.concat(), tail].concat(), what);
    }
    // Another bundle's chunk in the same place.
    let (other, _) = from.export().await;
    refused(&[&bundle[..header], &other[header..header + chunk], &bundle[header + chunk..]].concat(), "another bundle's");
    refused(&[&other[..other.iter().position(|byte| *byte == b'\n').unwrap() + 1], &bundle[header..]].concat(), "another bundle's header");
    assert!(matches!(checked(&bundle, [8; 32]), Err(Error::Invalid(_))), "another key");

    let to = House::new().await;
    let before = to.traces();
    let mut changed = bundle.clone();
    *changed.last_mut().unwrap() ^= 1;
    changed[header + 9] ^= 1;
    for (bad, key) in [(&changed[..], KEY), (&bundle[..bundle.len() - 1], KEY), (&bundle[..], [8; 32])] {
        assert!(matches!(to.import("b", bad, key).await, Err(Error::Invalid(_))));
        assert_eq!(to.traces(), before, "nothing is left");
        assert!(matches!(to.operator.tenant(&name("b")).await, Err(Error::NotFound(_))));
    }
    to.import("b", &bundle, KEY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_take_out_under_load_is_of_one_moment() {
    let (from, key, _) = furnished(2_000_000).await;
    let (from, stop) = (Arc::new(from), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn({
        let (from, stop, key) = (Arc::clone(&from), Arc::clone(&stop), key.clone());
        async move {
            for number in 0.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let text = format!("{number}");
                from.put(&key, &[("aa", &text), ("zz", &text)]).await;
                from.blob_put(&key, vec![1; 10_000]).await;
            }
        }
    });
    let mut bundles = Vec::new();
    for _ in 0..3 {
        bundles.push(from.export().await);
    }
    stop.store(true, Ordering::Release);
    writer.await.unwrap();
    let to = House::new().await;
    for (number, (bundle, info)) in bundles.into_iter().enumerate() {
        let created = to.import(&format!("t{number}"), &bundle, KEY).await.unwrap();
        let key = created.admin_key.secret();
        assert_eq!(to.get(key, "aa").await.map(|note| note.text), to.get(key, "zz").await.map(|note| note.text), "written together");
        let used = to.tenant(key).await.unwrap().allow::<QuotaRead>("").unwrap().quota_use().used;
        assert_eq!(used["objects"], info.objects + 1, "the counter is of the same moment as the objects");
    }
}

#[tokio::test]
async fn an_import_that_died_is_swept() {
    let (from, ..) = furnished(1000).await;
    let (bundle, _) = from.export().await;
    let to = House::new().await;
    let before = to.traces();
    let id = crate::name::TenantId::random().unwrap();
    let dir = to.kernel.tenant_dir(id);
    std::fs::create_dir_all(dir.join("blobs")).unwrap();
    super::died(&to.kernel, id, crate::place::Placement::default()).await;
    assert_ne!(to.traces(), before);
    super::sweep(&to.kernel).await.unwrap();
    assert_eq!(to.traces(), before);
    assert!(matches!(super::finished(&to.kernel, id).await, Err(Error::Conflict(_))), "what was swept does not come to life");
    to.import("b", &bundle, KEY).await.unwrap();
    assert!(super::importing(&to.kernel).await.unwrap().is_empty(), "none is under way any more");
}

#[tokio::test]
async fn jobs_that_waited_or_ran_are_done_where_the_tenant_comes_to() {
    let (from, to) = (House::new().await, House::new().await);
    let key = from.tenant_new().await;
    for job in ["first", "second"] {
        let permit = from.tenant(&key).await.unwrap().allow::<TrainingRun>(job).unwrap();
        permit.enqueue("training", job).await.unwrap();
        let _ = permit.finish().unwrap();
    }
    let running = from.kernel.claim("here").await.unwrap().unwrap();
    let (bundle, _) = from.export().await;
    to.import("b", &bundle, KEY).await.unwrap();
    let mut taken = Vec::new();
    while let Some(lease) = to.kernel.claim("there").await.unwrap() {
        let tenant = to.kernel.resume(&lease).await.unwrap();
        assert_eq!((tenant.principal(), lease.attempts()), ("ada-lovelace", 1));
        assert!(tenant.allow::<TrainingRun>(lease.id()).is_ok());
        taken.push(lease.id().to_owned());
        to.kernel.release(lease).await.unwrap();
    }
    taken.sort_unstable();
    assert_eq!(taken, ["first", "second"]);
    from.kernel.release(running).await.unwrap();
}

/// Cells of a node with `runsc`, or of one without.
struct Node {
    runsc: bool,
}

impl Compute for Node {
    fn stop(&self, _: IslandToken) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }

    fn isolates(&self, isolation: IsolationClass) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        let can = self.runsc || isolation == IsolationClass::Jail;
        Box::pin(async move { if can { Ok(()) } else { Err("there is no `runsc` here".to_owned()) } })
    }
}

#[tokio::test]
async fn the_class_that_a_tenant_was_promised_goes_with_it_or_it_does_not_come() {
    let (from, ..) = furnished(1000).await;
    from.kernel.compute_attach(Arc::new(Node { runsc: true }));
    let limits = Limits { isolation: IsolationClass::Gvisor, ..Limits::default() };
    from.operator.limits_put(&name("a"), limits).await.unwrap();
    let (bundle, _) = from.export().await;

    let to = House::new().await;
    let before = to.traces();
    for without in [None, Some(Node { runsc: false })] {
        without.into_iter().for_each(|node| to.kernel.compute_attach(Arc::new(node)));
        let refused = to.import("b", &bundle, KEY).await.map(drop);
        assert!(
            matches!(&refused, Err(Error::Invalid(reason)) if reason.contains("`isolation` cannot be `gvisor` on this node")),
            "{refused:?}"
        );
        assert_eq!(to.traces(), before, "nothing is left");
        assert!(matches!(to.operator.tenant(&name("b")).await, Err(Error::NotFound(_))));
    }
    to.kernel.compute_attach(Arc::new(Node { runsc: true }));
    let created = to.import("b", &bundle, KEY).await.unwrap();
    assert_eq!(created.tenant.limits, Limits { isolation: IsolationClass::Gvisor, ..to.kernel.0.config.limits });

    // The service's own class, where that is the stronger one.
    let (from, ..) = furnished(1000).await;
    let (bundle, _) = from.export().await;
    let guarded = House::with(Limits { isolation: IsolationClass::Gvisor, ..Limits::default() }).await;
    let refused = guarded.import("b", &bundle, KEY).await.map(drop);
    assert!(matches!(&refused, Err(Error::Invalid(reason)) if reason.contains("isolation")), "{refused:?}");
    guarded.kernel.compute_attach(Arc::new(Node { runsc: true }));
    assert_eq!(guarded.import("b", &bundle, KEY).await.unwrap().tenant.limits.isolation, IsolationClass::Gvisor);
}

/// What services wrote before there were classes, and jailed tenants still are.
#[test]
fn a_manifest_without_a_class_is_of_a_jailed_tenant() {
    let text = r#"{"item":"manifest","tenant":"a","tenant_created_at":1,"exported_at":2}"#;
    let item: Item = serde_json::from_str(text).unwrap();
    assert!(matches!(item, Item::Manifest { isolation: IsolationClass::Jail, .. }));
    assert_eq!(serde_json::to_string(&item).unwrap(), text);
}

/// A take-out in which the tenant has this, too.
async fn taken_out_with(item: Content) -> (House, String, Vec<u8>) {
    let (from, key, _) = furnished(1000).await;
    from.tenant(&key).await.unwrap().island.store.take_in(vec![item]).await.unwrap();
    let bundle = from.export().await.0;
    (from, key, bundle)
}

#[tokio::test]
async fn a_member_under_the_name_of_another_is_refused_and_holds_nobody_up() {
    let member = br#"{"name":"ada-lovelace","roles":["admin"],"description":""}"#.to_vec();
    let item = Content::record("member".to_owned(), "zoe".to_owned(), member, vec![]);
    let (from, key, bundle) = taken_out_with(item).await;
    let refused = House::new().await.import("b", &bundle, KEY).await.map(drop);
    assert!(matches!(&refused, Err(Error::Invalid(reason)) if reason.contains("under the name of another")), "{refused:?}");
    // Where it is already, opening ends.
    let id = from.tenant(&key).await.unwrap().island.id;
    from.kernel.island_drop(id, crate::freeze::Why::Reopening).await.unwrap();
    let opened = tokio::time::timeout(std::time::Duration::from_secs(5), from.tenant(&key)).await.expect("it does not end");
    assert!(matches!(opened.map(drop), Err(Error::Integrity(_))));
}

#[tokio::test]
async fn counters_that_do_not_count_what_is_there_are_refused() {
    for (name, value) in [("objects", 0), ("objects", 2), ("storage_bytes", 999), ("members", 0), ("members", 2)] {
        let (_, _, bundle) = taken_out_with(Content::Counter { name: format!("usage/{name}"), value }).await;
        let refused = checked(&bundle, KEY);
        assert!(matches!(&refused, Err(Error::Invalid(reason)) if reason.contains("counters")), "{name} {value}: {refused:?}");
    }
}

#[tokio::test]
async fn a_tenant_that_has_more_than_a_new_one_may_is_refused() {
    let (from, ..) = furnished(1000).await;
    let (bundle, _) = from.export().await;
    let tight = |limits: Limits| House::with(Limits { requests_per_second: 1_000_000, ..limits });
    for limits in [Limits { objects: 0, ..Limits::default() }, Limits { storage_bytes: 999, ..Limits::default() }] {
        let refused = tight(limits).await.import("b", &bundle, KEY).await.map(drop);
        assert!(matches!(&refused, Err(Error::Invalid(reason)) if reason.contains("more than")), "{refused:?}");
    }
}
