//! Ships the ledgers of shared tenants and of a shared service, each on its own: one whose server does not answer holds up nobody else.

use super::*;

use tokio::task::JoinSet;

/// Ledgers on their way at once. The pools of connections have narrower bounds.
const SHIPPING_MAX: usize = 256;

pub(super) struct Shipper {
    stop: Arc<Notify>,
    running: tokio::task::JoinHandle<()>,
}

impl Shipper {
    pub(super) fn start(kernel: &Weak<Inner>) -> Self {
        let stop = Arc::default();
        Self { running: tokio::spawn(ship(Weak::clone(kernel), Arc::clone(&stop))), stop }
    }

    /// Nothing is on its way any more on return. What was, the next shipment finds out.
    pub(super) async fn stop(self) {
        self.stop.notify_one();
        let _ = self.running.await;
    }
}

async fn ship(kernel: Weak<Inner>, stop: Arc<Notify>) {
    let mut shipping = JoinSet::new();
    let mut round = 0u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(SYNC_EVERY) => {}
            () = stop.notified() => return shipping.shutdown().await,
        }
        while shipping.try_join_next().is_some() {}
        let Some(inner) = kernel.upgrade() else { return };
        round = round.wrapping_add(1);
        let checkpoint = round.is_multiple_of(CHECKPOINT_EVERY_SYNCS);
        if checkpoint && inner.control.shared_copy().is_some() {
            let inner = Arc::clone(&inner);
            shipping.spawn(async move { inner.service_checkpoint().await });
        }
        let open = inner.islands.lock();
        let waiting = open.iter().map(|(_, island)| island).filter(|island| island.is_shared() && island.ledger.dirty() && !island.torn());
        for island in waiting.take(SHIPPING_MAX.saturating_sub(shipping.len())) {
            let island = Arc::clone(island);
            // It tells by itself what goes wrong.
            shipping.spawn(async move { island.flush_unless_flushing(checkpoint).await });
        }
    }
}
