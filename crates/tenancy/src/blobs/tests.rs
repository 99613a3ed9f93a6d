use futures_util::TryStreamExt as _;

use super::*;
use crate::rows::Store;
use crate::rows::tests::Place;

mod buckets;
mod conformance;
pub(crate) mod home;

pub(super) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

pub(super) async fn sealed(store: &Store, content: &[u8], piece: usize) -> SealedBlob {
    let mut writer = store.blob_writer().unwrap();
    for piece in content.chunks(piece) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.bytes(), content.len() as u64);
    writer.finish().await.unwrap()
}

pub(super) async fn stored(store: &Store, content: &[u8]) -> BlobId {
    let blob = sealed(store, content, 10_000).await;
    let mut tx = store.tx().await.unwrap();
    let id = tx.attach(blob).await.unwrap();
    tx.commit_with(None).await.unwrap();
    id
}

pub(super) async fn read(store: &Store, id: BlobId) -> Result<Vec<u8>> {
    let reader = store.rows().blob(id).await?;
    let pieces: Vec<Bytes> = reader.stream().try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn only_an_absent_object_is_carried_again() {
    let place = Place::new();
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let id = stored(&store, &content(1000)).await;
    let dir = place.dir.path().join("other");
    let (here, there) = (Objects::folder(&tenant.dir.join("blobs")), Objects::create_folder(&dir).unwrap());
    let kept = objects::path(&dir, id);
    here.carry(id, 1000, &there).await.unwrap();

    // What cannot be opened just now may be as good as ever.
    std::fs::remove_file(&kept).unwrap();
    std::os::unix::fs::symlink(&kept, &kept).unwrap();
    assert!(matches!(here.carry(id, 1000, &there).await, Err(Error::Internal(_))));
    assert!(std::fs::symlink_metadata(&kept).unwrap().is_symlink(), "and is still there");
    std::fs::remove_file(&kept).unwrap();
    here.carry(id, 1000, &there).await.unwrap();
    std::fs::write(&kept, "half").unwrap();
    here.carry(id, 1000, &there).await.unwrap();
    assert_eq!(std::fs::metadata(&kept).unwrap().len(), sealed_bytes(1000));
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
