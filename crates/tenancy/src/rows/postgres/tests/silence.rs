//! A server that takes what is sent and answers nothing, as one that hangs, or whose network is gone.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::*;
use crate::rows::sql::Sql;

/// Goes between the service and its server. Nothing passes any more on connections that are open when it falls silent.
async fn line(listener: TcpListener, server: String, silent: watch::Receiver<bool>) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let (server, mut silent) = (server.clone(), silent.clone());
        tokio::spawn(async move {
            let mut far = TcpStream::connect(server).await.unwrap();
            let fell_silent = async { silent.wait_for(|silent| *silent).await.map(drop) };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                _ = fell_silent => {}
            }
            std::future::pending().await
        });
    }
}

#[tokio::test]
async fn a_silent_server_holds_up_nobody_for_ever_and_no_connection_either() {
    let Some(scratch) = scratch().await else { return };
    Postgres::migrate(&scratch.config).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let server = format!("{}:{}", scratch.superuser.get_host(), scratch.superuser.get_port());
    let through = |url: &Secret| Secret::new(url.expose().replace(&format!("@{server}/"), &format!("@{here}/")));
    let (rows_url, control_url) = (through(&scratch.config.rows_url), through(&scratch.config.control_url));
    assert_ne!(rows_url, scratch.config.rows_url);
    let config = PostgresConfig { rows_url, control_url, connections_pooled_max: 1, ..scratch.config.clone() };
    let (silence, silent) = watch::channel(false);
    let line = tokio::spawn(line(listener, server, silent));

    let postgres = Postgres::connect(&config).await.unwrap();
    let tenant = tenant();
    postgres.provision(tenant, Tier::Pooled, "").await.unwrap();
    let rows = postgres.rows(tenant, Tier::Pooled, None).await.unwrap();
    let mut transaction = rows.begin().await.unwrap();
    let mut sql = Sql::Postgres(&mut transaction, rows.prepared());
    sql.one("SELECT 1", &[]).await.unwrap();

    silence.send_replace(true);
    let began = Instant::now();
    assert!(matches!(sql.optional("SELECT 1", &[]).await, Err(Error::Unavailable(_))));
    assert!(began.elapsed() >= ANSWER_MAX && began.elapsed() < ANSWER_MAX * 2, "{:?}", began.elapsed());
    drop(transaction);
    let began = Instant::now();
    assert!(matches!(rows.begin().await, Err(Error::Unavailable(_))));
    assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());

    silence.send_replace(false);
    sleep(RELEASE_WAIT_MAX).await;
    let mut transaction = rows.begin().await.expect("the one connection that there may be is a new one");
    Sql::Postgres(&mut transaction, rows.prepared()).one("SELECT 1", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    line.abort();
    drop(postgres);
    scratch.drop().await;
}
