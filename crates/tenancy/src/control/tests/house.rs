//! Where the suite runs: a folder, and with it the file or a database of its own on the server.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use sqlx::Executor;

use super::super::*;
use crate::rows::db::Closing;
use crate::rows::postgres::Postgres;
use crate::rows::postgres::tests::{Scratch, scratch};
use crate::rows::tests::Place;

pub(super) struct House {
    pub(super) place: Place,
    server: Option<Server>,
}

/// A database of its own, and the connections of one node.
struct Server {
    scratch: Arc<Scratch>,
    node: Arc<Postgres>,
}

impl Server {
    /// Runs statements as the owner of the tables; how many rows they changed.
    async fn owner(&self, sql: &'static str) -> u64 {
        let mut connection = self.scratch.raw(self.scratch.config.owner_url.as_ref().unwrap()).await;
        connection.execute("SET search_path = insula_control").await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap().rows_affected()
    }
}

impl House {
    pub(super) fn on_file() -> Self {
        Self { place: Place::new(), server: None }
    }

    /// `None`, loudly, where there is no server and need not be one.
    pub(super) async fn on_server() -> Option<Self> {
        let scratch = Arc::new(scratch().await?);
        let node = scratch.open().await;
        Some(Self { place: Place::new(), server: Some(Server { scratch, node }) })
    }

    pub(super) fn is_server(&self) -> bool {
        self.server.is_some()
    }

    /// Another node of the same service: the same root key and rows, in another folder.
    pub(super) async fn another_node(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keystore = dir.path().join("keystore");
        std::fs::DirBuilder::new().mode(0o700).create(&keystore).unwrap();
        std::fs::copy(self.place.root.dir().join("root.key"), keystore.join("root.key")).unwrap();
        let root = RootStore::open_or_create(&keystore).unwrap().0;
        let anchors = Anchors::open(&root).unwrap();
        let scratch = &self.server.as_ref().unwrap().scratch;
        let node = Postgres::connect(&scratch.config).await.unwrap();
        let server = Some(Server { scratch: Arc::clone(scratch), node });
        Self { place: Place::over(dir, root, anchors), server }
    }

    pub(super) fn file(&self) -> PathBuf {
        self.place.dir.path().join("control.db")
    }

    pub(super) async fn open(&self) -> Result<Control> {
        let file = self.file();
        let store = match &self.server {
            None => ControlStore::File(&file),
            Some(server) => ControlStore::Postgres(server.node.control()),
        };
        Control::open(store, &self.place.root, &self.place.anchors).await
    }

    pub(super) async fn control(&self) -> Control {
        self.open().await.unwrap()
    }

    /// Runs a statement as somebody who can write the rows but knows no MAC key.
    pub(super) async fn vandal(&self, control: &Control, sql: &'static str) {
        let changed = match &self.server {
            None => {
                let mut txn = control.db.begin().await.unwrap();
                let changed = txn.sql().unwrap().execute(sql, &[]).await.unwrap();
                txn.commit().await.unwrap();
                changed
            }
            Some(server) => server.owner(sql).await,
        };
        assert!(changed > 0, "{sql}");
    }

    /// Puts back the rows from before the first use.
    pub(super) async fn vandal_emptied(&self) {
        let empty = "DELETE FROM tenant; DELETE FROM tenant_key; DELETE FROM data_key; DELETE FROM credential; DELETE FROM meta;
             INSERT INTO meta (name, value) VALUES ('digest', decode(repeat('00', 32), 'hex')); UPDATE state SET value = 0";
        self.server.as_ref().unwrap().owner(empty).await;
    }

    /// Puts right what [`House::vandal`] did, though nothing opens meanwhile.
    pub(super) async fn undone(&self, undo: &'static str) -> Control {
        if let Some(server) = &self.server {
            server.owner(undo).await;
        } else {
            let key = self.place.root.control_key().derive("control.db", &[]);
            let anchor = self.place.anchors.slot(0, SERVICE).unwrap();
            let db = Db::Sqlite(SqliteDb::open(&self.file(), &key, anchor, MIGRATIONS, Expect::Present).await.unwrap());
            let mut txn = db.begin().await.unwrap();
            txn.sql().unwrap().execute(undo, &[]).await.unwrap();
            txn.commit().await.unwrap();
            db.close(Closing::Clean).await.unwrap();
        }
        self.control().await
    }

    /// The process dies: nothing is closed cleanly, all commits are there.
    pub(super) async fn reopened(&self, control: Control) -> Result<Control> {
        let newest = control.db.generation();
        control.db.close(Closing::Clean).await.unwrap();
        drop(control);
        self.place.anchors.slot(0, SERVICE).unwrap().generation(newest).unwrap();
        self.open().await
    }

    /// Drops the database. Left out by a test that fails: then somebody can look.
    pub(super) async fn drop(self) {
        let Some(Server { scratch, node }) = self.server else { return };
        drop(node);
        Arc::into_inner(scratch).expect("another node still uses it").drop().await;
    }
}
