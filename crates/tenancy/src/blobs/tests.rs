use std::fs;
use std::path::PathBuf;

use futures_util::TryStreamExt;

use super::objects::path;
use super::*;
use crate::rows::Store;
use crate::rows::tests::{Island, Place};

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

async fn sealed(store: &Store, content: &[u8], piece: usize) -> SealedBlob {
    let mut writer = store.blob_writer().unwrap();
    for piece in content.chunks(piece) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.bytes(), content.len() as u64);
    writer.finish().await.unwrap()
}

async fn stored(store: &Store, content: &[u8]) -> BlobId {
    let blob = sealed(store, content, 10_000).await;
    let mut tx = store.tx().await.unwrap();
    let id = tx.attach(blob).await.unwrap();
    tx.commit_with(None).await.unwrap();
    id
}

async fn read(store: &Store, id: BlobId) -> Result<Vec<u8>> {
    let reader = store.rows().blob(id).await?;
    let pieces: Vec<Bytes> = reader.stream().try_collect().await?;
    Ok(pieces.concat())
}

fn object(tenant: &Island, id: BlobId) -> PathBuf {
    path(&tenant.dir.join("blobs"), id)
}

fn files(tenant: &Island) -> usize {
    let folders = fs::read_dir(tenant.dir.join("blobs")).unwrap();
    folders.map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

async fn refused(store: &Store, id: BlobId) -> bool {
    matches!(read(store, id).await, Err(Error::Integrity(_)))
}

#[tokio::test]
async fn objects_come_back_as_they_were() {
    let place = Place::new();
    let store = place.tenant(1).create().await;
    for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 1_500_007] {
        for piece in [777, 100_000, 2_000_000] {
            let content = content(bytes);
            let blob = sealed(&store, &content, piece).await;
            let digest = digest::digest(&digest::SHA256, &content);
            assert_eq!((blob.bytes(), blob.sha256().as_slice()), (bytes as u64, digest.as_ref()));
            assert_eq!(blob.open().await.unwrap().read_at(0, bytes).await.unwrap(), content, "before it is attached");
            let mut tx = store.tx().await.unwrap();
            let id = tx.attach(blob).await.unwrap();
            tx.commit_with(None).await.unwrap();
            assert_eq!(read(&store, id).await.unwrap(), content, "{bytes} in pieces of {piece}");
            let reader = store.rows().blob(id).await.unwrap();
            assert_eq!((reader.bytes(), reader.sha256().as_slice()), (bytes as u64, digest.as_ref()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_range_can_be_read_in_parallel() {
    let place = Place::new();
    let store = place.tenant(1).create().await;
    let content = content(5 * CHUNK_BYTES + 123);
    let id = stored(&store, &content).await;
    let reader = store.rows().blob(id).await.unwrap();
    let chunk = CHUNK_BYTES as u64;
    let offsets = [0, 1, chunk - 1, chunk, chunk + 1, 5 * chunk, 5 * chunk + 122, 5 * chunk + 123, u64::MAX];
    let lengths = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, READ_BYTES_MAX];
    let mut reads = tokio::task::JoinSet::new();
    for (offset, length) in offsets.into_iter().flat_map(|offset| lengths.map(|length| (offset, length))) {
        let reader = reader.clone();
        reads.spawn(async move { (offset, length, reader.read_at(offset, length).await.unwrap()) });
    }
    while let Some(done) = reads.join_next().await {
        let (offset, length, got) = done.unwrap();
        let from = usize::try_from(offset).unwrap().min(content.len());
        assert_eq!(got, content[from..from.saturating_add(length).min(content.len())], "{length} from {offset}");
    }
    assert!(matches!(reader.read_at(0, READ_BYTES_MAX + 1).await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn tampered_files_are_refused() {
    let place = Place::new();
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let (id, other) = (stored(&store, &content(3 * CHUNK_BYTES)).await, stored(&store, &content(3 * CHUNK_BYTES)).await);
    let path = object(&tenant, id);
    let good = fs::read(&path).unwrap();
    let clear = &content(64)[..];
    assert!(!good.windows(clear.len()).any(|at| at == clear), "not in clear");
    let (one, two, three) =
        (&good[..SEALED_CHUNK_BYTES], &good[SEALED_CHUNK_BYTES..2 * SEALED_CHUNK_BYTES], &good[2 * SEALED_CHUNK_BYTES..]);
    let mut bad: Vec<(&str, Vec<u8>)> = vec![
        ("cut by a byte", good[..good.len() - 1].to_vec()),
        ("last chunk dropped", [one, two].concat()),
        ("longer", [&good, &[0u8][..]].concat()),
        ("chunks swapped", [two, one, three].concat()),
        ("chunk repeated", [one, one, three].concat()),
        ("last chunk in front", [three, two, one].concat()),
        ("another object", fs::read(object(&tenant, other)).unwrap()),
        ("chunk of another object", [one, &fs::read(object(&tenant, other)).unwrap()[SEALED_CHUNK_BYTES..]].concat()),
        ("empty", Vec::new()),
    ];
    for at in [0, CHUNK_BYTES, SEALED_CHUNK_BYTES + 5, good.len() - 1] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x80;
        bad.push(("a bit", flipped));
    }
    for (what, bytes) in bad {
        fs::write(&path, bytes).unwrap();
        assert!(refused(&store, id).await, "{what}");
    }
    fs::remove_file(&path).unwrap();
    assert!(refused(&store, id).await, "gone");
    fs::write(&path, &good).unwrap();
    assert_eq!(read(&store, id).await.unwrap(), content(3 * CHUNK_BYTES));
}

#[tokio::test]
async fn every_part_of_the_place_is_bound() {
    let place = Place::new();
    let (tenant, foreign) = (place.tenant(1), place.tenant(2));
    let store = tenant.create().await;
    foreign.create().await;
    let id = stored(&store, &content(2 * CHUNK_BYTES)).await;
    let objects = Objects::folder(&tenant.dir.join("blobs"));
    let row = {
        let key = Key::random().unwrap();
        let (key_version, wrapped_key) = tenant.keys.wrap_object(&key, id.0).unwrap();
        BlobRow { key_version, wrapped_key, commitment: [0; 32], bytes: 2 * CHUNK_BYTES as u64, sha256: [0; 32] }
    };
    let context = |result: Result<BlobReader>| match result {
        Err(Error::Integrity(context)) => context,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    };
    assert!(
        context(BlobReader::open(&objects, id, &row, &tenant.keys, Arc::default()).await).contains("key is not the one"),
        "commitment first"
    );
    assert!(
        context(BlobReader::open(&objects, id, &row, &foreign.keys, Arc::default()).await).contains("does not open"),
        "wrapped for another tenant"
    );
    assert!(
        context(BlobReader::open(&objects, BlobId([9; 16]), &row, &tenant.keys, Arc::default()).await).contains("does not open"),
        "wrapped for another object"
    );
    // The same key and bytes under another tenant's or object's name do not open either.
    let key = Key::random().unwrap();
    let seal_one = |chunks: &Chunks, number, last| {
        let mut buffer = b"hello".to_vec();
        chunks.seal(number, last, &mut buffer).unwrap();
        buffer
    };
    let (chunks, _) = Chunks::new(&key, tenant.id, id).unwrap();
    let opens = |other: &Chunks, number, last| other.open(number, last, &mut seal_one(&chunks, 7, false)).is_ok();
    assert!(opens(&chunks, 7, false));
    assert!(!opens(&chunks, 8, false) && !opens(&chunks, 7, true), "chunk number and end");
    let same_cipher = |tenant, id| Chunks { cipher: Chunks::new(&key, chunks.tenant, chunks.id).unwrap().0.cipher, tenant, id };
    assert!(opens(&same_cipher(tenant.id, id), 7, false));
    assert!(!opens(&same_cipher(foreign.id, id), 7, false), "tenant is in the associated data");
    assert!(!opens(&same_cipher(tenant.id, BlobId([1; 16])), 7, false), "object is in the associated data");
    assert!(!opens(&Chunks::new(&key, foreign.id, id).unwrap().0, 7, false), "tenant is in the derivation");
}

#[tokio::test]
async fn unfinished_unattached_and_rolled_back_objects_leave_nothing() {
    let place = Place::new();
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let mut writer = store.blob_writer().unwrap();
    writer.write(content(500_000).into()).await.unwrap();
    assert_eq!(files(&tenant), 1);
    drop(writer);
    assert_eq!(files(&tenant), 0, "writer dropped");
    drop(sealed(&store, b"hello", 3).await);
    assert_eq!(files(&tenant), 0, "sealed, not attached");
    let mut tx = store.tx().await.unwrap();
    let id = tx.attach(sealed(&store, b"hello", 3).await).await.unwrap();
    drop(tx);
    assert_eq!(files(&tenant), 0, "rolled back");
    assert!(matches!(store.rows().blob(id).await.map(drop), Err(Error::NotFound(_))));
}

#[tokio::test]
async fn detached_objects_are_gone_after_the_commit_only() {
    let place = Place::new();
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let id = stored(&store, b"hello").await;
    let reader = store.rows().blob(id).await.unwrap();
    let mut tx = store.tx().await.unwrap();
    assert_eq!(tx.detach(id).await.unwrap(), Some(5));
    assert_eq!(tx.detach(id).await.unwrap(), None);
    drop(tx);
    assert_eq!(read(&store, id).await.unwrap(), b"hello", "rolled back");
    let mut tx = store.tx().await.unwrap();
    tx.detach(id).await.unwrap();
    tx.commit_with(None).await.unwrap();
    assert_eq!(files(&tenant), 0);
    assert!(matches!(read(&store, id).await, Err(Error::NotFound(_))));
    assert_eq!(reader.read_at(0, 5).await.unwrap(), "hello", "who has it open reads on");
}

#[tokio::test]
async fn left_overs_of_a_crash_are_swept() {
    let place = Place::new();
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let id = stored(&store, b"hello").await;
    std::mem::forget(sealed(&store, b"never attached", 3).await);
    assert_eq!(files(&tenant), 2);
    tenant.kill(store).await;
    let store = tenant.open().await.unwrap();
    assert_eq!(files(&tenant), 1);
    assert_eq!(read(&store, id).await.unwrap(), b"hello");
}

#[tokio::test]
async fn rotation_keeps_objects_readable_and_retires_the_old_key() {
    let place = Place::new();
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(stored(&store, format!("object {number}").as_bytes()).await);
    }
    let (second, rows) = tenant.keys.next_version(&place.root, &tenant.rows, 1).unwrap();
    assert_eq!(second.version(), 2);
    let second = std::sync::Arc::new(second);
    store.keyring_replace(std::sync::Arc::clone(&second));
    assert_eq!(read(&store, ids[0]).await.unwrap(), b"object 0", "old versions still open");
    assert_eq!(store.blobs_rewrap(3).await.unwrap(), 2);
    assert_eq!(store.blobs_rewrap(3).await.unwrap(), 0);
    assert_eq!(store.blobs_rewrap(3).await.unwrap(), 0);
    assert!(matches!(second.retire(&place.root, &rows, 2), Err(Error::Conflict(_))), "never the active one");
    let (retired, rows) = second.retire(&place.root, &rows, 1).unwrap();
    assert!(rows.tenant.iter().any(|row| row.version == 1 && row.wrapped.is_empty()));
    store.keyring_replace(std::sync::Arc::new(retired));
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(read(&store, *id).await.unwrap(), format!("object {number}").as_bytes());
    }
}
