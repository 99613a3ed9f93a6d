//! Nothing of one tenant's request is left on the connection for the next one, however the request ends.

use std::pin::pin;
use std::task::Poll;

use super::*;

const TENANTS: usize = 200;
const ROUNDS: usize = 5;
/// A request of five statements is ready after about a dozen polls.
const POLLS_MAX: u64 = 14;

/// Runs a future for so many polls and drops it then, wherever it is.
async fn cut_after<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

fn dice(sides: u64) -> u64 {
    u64::from_le_bytes(random().unwrap()) % sides
}

/// One request: sees only its own rows and its own tenant, at every step. Returns the key it committed.
async fn request(rows: &PgRows, tenant: &str, number: usize, panics: bool) -> Option<String> {
    let mut transaction = match rows.begin().await {
        Ok(transaction) => transaction,
        Err(Error::Unavailable(_)) => return None,
        Err(error) => panic!("{error}: {:?}", error.private()),
    };
    let connection = &mut *transaction;
    let persistent = rows.prepared() == Prepared::Kept;
    let select = "SELECT replace(current_setting('insula.tenant'), '-', '')";
    let set: String = sqlx::query_scalar(select).persistent(persistent).fetch_one(&mut *connection).await.unwrap();
    assert_eq!(set, tenant, "another tenant is set");
    let key = format!("{tenant}/{number}/{}", hex(&random::<8>().unwrap()));
    let insert = sqlx::query("INSERT INTO record (kind, key, value) VALUES ('k', $1, 'v')").bind(&key).persistent(persistent);
    insert.execute(&mut *connection).await.unwrap();
    let seen = sqlx::query_scalar("SELECT key FROM record").persistent(persistent);
    let seen: Vec<String> = seen.fetch_all(&mut *connection).await.unwrap();
    assert!(seen.contains(&key));
    assert!(seen.iter().all(|key| key.starts_with(tenant)), "rows of another tenant");
    assert!(!panics, "this request breaks down");
    if dice(4) == 0 {
        return None;
    }
    transaction.commit().await.unwrap();
    Some(key)
}

async fn two_hundred_tenants(scratch: &Scratch, config: &PostgresConfig) {
    let config = PostgresConfig { connections_pooled_max: 1, ..config.clone() };
    let postgres = Postgres::connect(&config).await.unwrap();
    let tasks = (0..TENANTS).map(|_| {
        let postgres = Arc::clone(&postgres);
        tokio::spawn(async move {
            let tenant = tenant();
            let rows = postgres.rows(tenant, Tier::Pooled, None).await.unwrap();
            let (mut committed, mut cut, mut broke) = (Vec::new(), 0, 0);
            for number in 0..ROUNDS {
                let (rows, name) = (rows.clone(), tenant.hex());
                let (polls, panics) = (dice(POLLS_MAX), dice(5) == 0);
                // A third of the requests is cut at some await; of the others one in five panics.
                let polls = if dice(3) == 0 { polls } else { u64::MAX };
                match tokio::spawn(async move { cut_after(polls, request(&rows, &name, number, panics)).await }).await {
                    Ok(Some(key)) => committed.extend(key),
                    Ok(None) => cut += 1,
                    Err(error) => {
                        let panic = error.into_panic();
                        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
                        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap();
                        assert_eq!(words, "this request breaks down");
                        broke += 1;
                    }
                }
            }
            (rows, committed, cut, broke)
        })
    });
    let (mut cuts, mut breaks, mut commits) = (0, 0, 0);
    for task in tasks.collect::<Vec<_>>() {
        let (rows, committed, cut, broke) = task.await.unwrap();
        let mut transaction = rows.begin().await.unwrap();
        let seen = sqlx::query_scalar("SELECT key FROM record").persistent(rows.prepared() == Prepared::Kept);
        let seen: Vec<String> = seen.fetch_all(&mut *transaction).await.unwrap();
        assert!(committed.iter().all(|key| seen.contains(key)), "what was committed is there");
        (cuts, breaks, commits) = (cuts + cut, breaks + broke, commits + committed.len());
    }
    println!("{commits} committed, {cuts} cut, {breaks} broke down");
    assert!(cuts > 50 && breaks > 30 && commits > 200, "{cuts} {breaks} {commits}");

    let mut superuser = scratch.superuser.clone().database(&scratch.name).connect().await.unwrap();
    let astray = "SELECT count(*) FROM insula.record WHERE split_part(key, '/', 1) <> replace(tenant::text, '-', '')";
    assert_eq!(sqlx::query_scalar::<_, i64>(astray).fetch_one(&mut superuser).await.unwrap(), 0, "a row in another tenant's place");
    let open = "SELECT count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%') FROM pg_stat_activity WHERE usename = $1";
    // The last one is still on its way out.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let role = postgres.roles.rows.as_str();
    let (connections, unfinished): (i64, i64) = sqlx::query_as(open).bind(role).fetch_one(&mut superuser).await.unwrap();
    assert_eq!((connections, unfinished), (1, 0), "one connection, and no transaction is left on it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_tenants_over_one_connection_with_cuts_and_panics() {
    let Some(scratch) = scratch().await else { return };
    scratch.open().await;
    two_hundred_tenants(&scratch, &scratch.config).await;
    scratch.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_behind_a_pooler_in_transaction_mode() {
    let Some(scratch) = scratch().await else { return };
    scratch.open().await;
    if let Some(config) = scratch.pooled() {
        two_hundred_tenants(&scratch, &config).await;
    }
    scratch.drop().await;
}

#[tokio::test]
async fn a_beginning_that_is_cut_leaves_no_transaction() {
    let Some(scratch) = scratch().await else { return };
    scratch.open().await;
    let config = PostgresConfig { connections_pooled_max: 1, ..scratch.config.clone() };
    let postgres = Postgres::connect(&config).await.unwrap();
    let rows = postgres.rows(tenant(), Tier::Pooled, None).await.unwrap();
    for polls in (0..6).cycle().take(300) {
        drop(cut_after(polls, rows.begin()).await);
        // The raw connection of the pool, with nothing of ours around it.
        let mut connection = postgres.pooled.acquire().await.unwrap();
        let refused = raw_sql("SAVEPOINT s").execute(&mut *connection).await.unwrap_err().to_string();
        assert!(refused.contains("can only be used in transaction blocks"), "cut after {polls}: a transaction is open: {refused}");
        let select = "SELECT nullif(current_setting('insula.tenant', true), '')";
        let left: Option<String> = sqlx::query_scalar(select).fetch_one(&mut *connection).await.unwrap();
        assert_eq!(left, None, "cut after {polls}");
    }
    scratch.drop().await;
}
