//! What must hold wherever the objects lie: the same assertions on a folder and on a bucket.

use super::home::Home;
use super::*;
use crate::freeze::Why;

/// More than three parts of an upload.
const LARGE_BYTES: usize = 3 * 8 * 1024 * 1024 + 12_345;

/// Each of these once on a folder, and once on a bucket of the test server.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod folder {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::Home::folder()).await;
            })+
        }
        mod bucket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(home) = super::Home::bucket().await else { return };
                super::$name(&home).await;
                home.end().await;
            })+
        }
    };
}

on_both!(
    objects_come_back_as_they_were,
    large_objects_come_back_as_they_were,
    any_range_can_be_read_in_parallel,
    many_write_and_read_side_by_side,
    tampered_objects_are_refused,
    another_tenants_object_is_refused,
    unfinished_unattached_and_rolled_back_objects_leave_nothing,
    detached_objects_are_gone_after_the_commit_only,
    left_overs_of_a_crash_are_swept,
    a_write_that_is_broken_off_leaves_nothing,
    stored_bytes_can_be_copied_to_another_place,
    a_frozen_tenants_reader_gives_nothing_more,
);

async fn refused(store: &Store, id: BlobId) -> bool {
    matches!(read(store, id).await, Err(Error::Integrity(_)))
}

async fn objects_come_back_as_they_were(home: &Home) {
    let store = home.create().await;
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

async fn large_objects_come_back_as_they_were(home: &Home) {
    let store = home.create().await;
    // Ends of parts and ends of chunks do not coincide; the sizes lie around one part as it is stored.
    let part = 8 * 1024 * 1024;
    let whole = part / SEALED_CHUNK_BYTES * CHUNK_BYTES;
    for bytes in [whole, whole + part % SEALED_CHUNK_BYTES - TAG_BYTES, whole + part % SEALED_CHUNK_BYTES - TAG_BYTES + 1, LARGE_BYTES] {
        let content = content(bytes);
        let blob = sealed(&store, &content, 5_000_000).await;
        let mut tx = store.tx().await.unwrap();
        let id = tx.attach(blob).await.unwrap();
        tx.commit_with(None).await.unwrap();
        let reader = store.rows().blob(id).await.unwrap();
        assert!(reader.read_at(0, bytes).await.unwrap() == content, "{bytes} at once");
        assert!(read(&store, id).await.unwrap() == content, "{bytes} in pieces");
        assert_eq!(home.raw(id).await.len() as u64, sealed_bytes(bytes as u64));
    }
}

async fn any_range_can_be_read_in_parallel(home: &Home) {
    let store = home.create().await;
    let content = Arc::new(content(5 * CHUNK_BYTES + 123));
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

async fn many_write_and_read_side_by_side(home: &Home) {
    let store = Arc::new(home.create().await);
    let mut work = tokio::task::JoinSet::new();
    for number in 0..16usize {
        let store = Arc::clone(&store);
        work.spawn(async move {
            let content = content(100_000 + number);
            let id = stored(&store, &content).await;
            for _ in 0..3 {
                assert!(read(&store, id).await.unwrap() == content, "object {number}");
            }
        });
    }
    work.join_all().await;
    home.settles_at(16, "all are there").await;
}

async fn tampered_objects_are_refused(home: &Home) {
    let store = home.create().await;
    let (id, other) = (stored(&store, &content(3 * CHUNK_BYTES)).await, stored(&store, &content(3 * CHUNK_BYTES)).await);
    let (good, foreign) = (home.raw(id).await, home.raw(other).await);
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
        ("another object", foreign.clone()),
        ("chunk of another object", [one, &foreign[SEALED_CHUNK_BYTES..]].concat()),
        ("empty", Vec::new()),
    ];
    for at in [0, CHUNK_BYTES, SEALED_CHUNK_BYTES + 5, good.len() - 1] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x80;
        bad.push(("a bit", flipped));
    }
    for (what, bytes) in bad {
        home.put_raw(id, &bytes).await;
        assert!(refused(&store, id).await, "{what}");
    }
    home.remove_raw(id).await;
    assert!(refused(&store, id).await, "gone");
    home.put_raw(id, &good).await;
    let reader = store.rows().blob(id).await.unwrap();
    assert_eq!(read(&store, id).await.unwrap(), content(3 * CHUNK_BYTES));
    home.put_raw(id, &good[..SEALED_CHUNK_BYTES]).await;
    assert!(matches!(reader.read_at(0, 3 * CHUNK_BYTES).await, Err(Error::Integrity(_))), "cut after it was opened");
    assert_eq!(read(&store, other).await.unwrap(), content(3 * CHUNK_BYTES), "the other one is as it was");
}

async fn another_tenants_object_is_refused(home: &Home) {
    let store = home.create().await;
    let neighbour = home.place.tenant(2);
    let theirs = neighbour.create().await;
    let (id, foreign) = (stored(&store, &content(1000)).await, stored(&theirs, &content(1000)).await);
    let bytes = std::fs::read(super::super::objects::path(&neighbour.dir.join("blobs"), foreign)).unwrap();
    assert_eq!(bytes.len(), home.raw(id).await.len());
    home.put_raw(id, &bytes).await;
    assert!(refused(&store, id).await);
}

async fn unfinished_unattached_and_rolled_back_objects_leave_nothing(home: &Home) {
    let store = home.create().await;
    for bytes in [500_000, LARGE_BYTES] {
        let mut writer = store.blob_writer().unwrap();
        for piece in content(bytes).chunks(1_000_000) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        // A small one comes into a bucket only when it is finished.
        assert_eq!(home.lying().await, usize::from(home.bucket.is_none() || bytes == LARGE_BYTES));
        drop(writer);
        home.settles_at(0, "writer dropped").await;
        drop(sealed(&store, &content(bytes), 1_000_000).await);
        home.settles_at(0, "sealed, not attached").await;
        let mut tx = store.tx().await.unwrap();
        let id = tx.attach(sealed(&store, &content(bytes), 1_000_000).await).await.unwrap();
        drop(tx);
        home.settles_at(0, "rolled back").await;
        assert!(matches!(store.rows().blob(id).await.map(drop), Err(Error::NotFound(_))));
    }
}

async fn detached_objects_are_gone_after_the_commit_only(home: &Home) {
    let store = home.create().await;
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
    home.settles_at(0, "committed").await;
    assert!(matches!(read(&store, id).await, Err(Error::NotFound(_))));
    match reader.read_at(0, 5).await {
        Ok(bytes) => assert!(bytes == "hello" && home.bucket.is_none(), "who has the file open reads on"),
        Err(error) => assert!(matches!(error, Error::NotFound(_)) && home.bucket.is_some(), "{error:?}"),
    }
}

async fn left_overs_of_a_crash_are_swept(home: &Home) {
    let store = home.create().await;
    let id = stored(&store, b"hello").await;
    std::mem::forget(sealed(&store, b"never attached", 3).await);
    let mut writer = store.blob_writer().unwrap();
    for _ in 0..20 {
        writer.write(content(1_000_000).into()).await.unwrap();
    }
    std::mem::forget(writer);
    assert_eq!(home.lying().await, 3, "with an upload that nobody will finish");
    home.tenant.kill(store).await;
    let store = home.open().await;
    assert_eq!(home.lying().await, 1);
    assert_eq!(read(&store, id).await.unwrap(), b"hello");
}

async fn a_write_that_is_broken_off_leaves_nothing(home: &Home) {
    let store = home.create().await;
    for polls in 0..12 {
        let mut writer = store.blob_writer().unwrap();
        writer.write(content(9_000_000).into()).await.unwrap();
        let mut finish = std::pin::pin!(writer.finish());
        for _ in 0..polls {
            if futures_util::poll!(&mut finish).is_ready() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
    }
    home.settles_at(0, "finish was not waited for").await;
    store.close().await.unwrap();
    assert_eq!(home.lying().await, 0);
}

async fn stored_bytes_can_be_copied_to_another_place(home: &Home) {
    let store = home.create().await;
    let neighbour = tempfile::tempdir().unwrap();
    let folder = Objects::create_folder(&neighbour.path().join("blobs")).unwrap();
    let here = home.objects().unwrap_or_else(|| Objects::folder(&home.tenant.dir.join("blobs")));
    for bytes in [0, 70_000, 9_000_000] {
        let (id, length) = (stored(&store, &content(bytes)).await, sealed_bytes(bytes as u64));
        // There and back again, each of them twice.
        for (from, to) in [(&here, &folder), (&here, &folder), (&folder, &here), (&folder, &here)] {
            from.copy(id, length, to).await.unwrap();
            assert!(read(&store, id).await.unwrap() == content(bytes));
        }
        let lost = folder.copy(BlobId([7; 16]), length, &here).await;
        assert!(matches!(lost, Err(Error::Integrity(_))));
    }
    home.settles_at(3, "copies replace").await;
    here.remove_all().await.unwrap();
    here.remove_all().await.unwrap();
    if home.bucket.is_some() {
        home.settles_at(0, "all gone").await;
    } else {
        assert!(!home.tenant.dir.join("blobs").exists());
    }
}

async fn a_frozen_tenants_reader_gives_nothing_more(home: &Home) {
    let store = home.create().await;
    let id = stored(&store, b"hello").await;
    let reader = store.rows().blob(id).await.unwrap();
    store.freeze().set(Why::Reopening);
    assert!(matches!(reader.read_at(0, 5).await, Err(Error::Unavailable(_))), "it can be asked for again");
    store.freeze().set(Why::Stopped);
    assert!(matches!(reader.read_at(0, 5).await, Err(Error::TenantState(_))));
}
