//! Whose prediction goes next when there is more work than cores: weighted fair queueing over tenants, as a pure structure. Time comes in by
//! parameter, and nothing here waits.
//!
//! A cell works on one core. So a *core* is what is shared out: a tenant with anything in its cell holds one. While tenants with work are
//! fewer than cores, everybody goes straight through. When they are more, the tenant that has had least goes first:
//!
//! ```text
//! virtual time of a tenant += time it held a core / its weight        start-time fair queueing (Goyal, Vin, Cheng 1996)
//! next into a free core     = the waiting tenant with the least virtual time
//! a tenant in a core        may go on while it is at most a quantum ahead of whoever waits
//! ```
//!
//! Whoever comes back after a rest starts where the least served of those at work is: rest saves nothing up, and a flood has no lead over
//! somebody who asks once. Nor does a tenant save up what a single cell cannot use of its share ([`Rules::lag`]). And whoever comes from rest
//! goes before all who have been waiting, unless it is [`Rules::lead`] ahead of them already. So who asks now and then waits at most for the
//! request that runs: how many requests may lie in one cell depends on how long they take ([`Rules::ahead`]), so that many short ones keep
//! the cell busy and a long one is alone in it. And what takes longer than [`Rules::slice`], one request or all that were let in together,
//! does not keep its core from others: they are let in beside it, at once if its tenant's requests are known to take so long, else when it
//! has ([`Fair::poke`]), and the kernel shares the core.
//!
//! Work that nobody waits for goes only where a core is free and nobody wants it, and then keeps it from nobody ([`Fair::spare`]).
//!
//! A tenant with several cells has a queue for each, and each of them that part of its weight ([`Portion`]).
//!
//! Within a tenant order is by priority, then by arrival. A priority is nobody else's business: it moves nothing between tenants.
//!
//! What is deliberately missing: a fixed share. A core that nobody else wants is free for all.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Virtual time: nanoseconds of a core at weight 1, as a fixed-point number of [`UNIT`]s.
type Tag = u128;
/// Parts of a nanosecond: a weight of 1000 still moves.
const UNIT: Tag = 1 << 16;
/// By how much a remembered service time fades with each request: an eighth.
const FADE: u32 = 8;

/// How urgent a prediction is among those of its own tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// After all others.
    Low,
    /// As it comes.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Priority {
    const ALL: usize = 3;
}

/// One cell's part of its tenant's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portion {
    /// The tenant's weight; at least 1.
    pub(crate) weight: u32,
    /// Cells that it is for; at least 1.
    pub(crate) cells: u32,
}

/// Limits of a [`Fair`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Tenants at work at once; at least 1.
    pub(crate) cores: usize,
    /// Requests of one tenant that wait.
    pub(crate) queue_max: usize,
    /// Requests of one tenant in its cell.
    pub(crate) in_flight_max: usize,
    /// How far a tenant in a core may get ahead of one who waits, in time of a core at weight 1.
    pub(crate) quantum: Duration,
    /// For how long requests that lie in a cell may keep it busy; one is always allowed.
    pub(crate) ahead: Duration,
    /// For how long the requests that lie in a cell keep its core from others, from when the last of them was let in.
    pub(crate) slice: Duration,
    /// How far a tenant that comes from rest may be ahead of those who wait and still go before them, in time of a core at weight 1.
    pub(crate) lead: Duration,
    /// How far a tenant in a core may stay behind those who wait, in time of a core at weight 1.
    pub(crate) lag: Duration,
}

/// One cell of a tenant in a [`Fair`]; most have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FlowId(usize);

/// What came of asking.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Go. To be given back by [`Fair::leave`].
    Go,
    /// Wait: the ticket, by which the wait can be given up.
    Wait(u64),
    /// Too many of this tenant wait.
    Full,
}

/// Somebody who waits; `W` is how to tell them.
struct Waiter<W> {
    ticket: u64,
    tell: W,
}

struct Flow<W> {
    portion: Portion,
    tag: Tag,
    /// Its place among those who wait for a core.
    key: Tag,
    in_flight: usize,
    /// Requests that its cell can work on at once.
    joined: usize,
    /// Until when its core is paid for, in nanoseconds.
    paid: u64,
    /// When its cell got the last request, in nanoseconds: answers to those before it are no new claim to the core.
    since: u64,
    /// How long one of its requests takes, rather too long than too short, in nanoseconds.
    service: u64,
    queued: [VecDeque<Waiter<W>>; Priority::ALL],
}

impl<W> Flow<W> {
    fn waits(&self) -> usize {
        self.queued.iter().map(VecDeque::len).sum()
    }

    fn idle(&self) -> bool {
        self.in_flight == 0 && self.waits() == 0
    }

    /// Virtual time with the core it holds now.
    fn tag_at(&self, now: u64) -> Tag {
        let held = if self.in_flight > 0 { now.saturating_sub(self.paid) } else { 0 };
        self.tag + Tag::from(held) * UNIT * Tag::from(self.portion.cells) / Tag::from(self.portion.weight)
    }

    fn pop(&mut self) -> Option<Waiter<W>> {
        self.queued.iter_mut().rev().find_map(VecDeque::pop_front)
    }
}

/// The queue of a node.
pub(crate) struct Fair<W> {
    rules: Rules,
    flows: Vec<Option<Flow<W>>>,
    free: Vec<usize>,
    /// Tenants in a core.
    running: Vec<FlowId>,
    /// Cells at work for nobody who waits.
    spare: usize,
    /// Tenants that wait and have none, whose turn comes first first.
    waiting: BTreeSet<(Tag, FlowId)>,
    /// Virtual time of the node: that of the least served tenant at work, and never less than before.
    now_tag: Tag,
    next_ticket: u64,
}

impl<W> Fair<W> {
    pub(crate) fn new(rules: Rules) -> Self {
        let rules = Rules { cores: rules.cores.max(1), in_flight_max: rules.in_flight_max.max(1), ..rules };
        Self {
            rules,
            flows: Vec::new(),
            free: Vec::new(),
            running: Vec::new(),
            spare: 0,
            waiting: BTreeSet::new(),
            // So that there is something to be ahead of.
            now_tag: units(rules.lead),
            next_ticket: 0,
        }
    }

    /// A tenant comes.
    pub(crate) fn join(&mut self) -> FlowId {
        // Nothing is known of its requests: the first one is alone in its cell.
        let (service, portion) = (nanos(self.rules.ahead), Portion { weight: 1, cells: 1 });
        let flow =
            Flow { portion, tag: self.now_tag, key: 0, in_flight: 0, joined: 1, paid: 0, since: 0, service, queued: Default::default() };
        let free = self.free.pop();
        match free.and_then(|at| Some((at, self.flows.get_mut(at)?))) {
            Some((at, place)) => {
                *place = Some(flow);
                FlowId(at)
            }
            None => {
                self.flows.push(Some(flow));
                FlowId(self.flows.len() - 1)
            }
        }
    }

    /// A tenant without requests goes.
    pub(crate) fn part(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id.0).and_then(Option::take) else { return };
        self.running.retain(|running| *running != id);
        self.waiting.remove(&(flow.key, id));
        self.free.push(id.0);
    }

    /// Says how many of a tenant's requests its cell can work on at once: as many may lie there, however long they take.
    pub(crate) fn joins(&mut self, id: FlowId, requests: usize) {
        if let Some(flow) = self.flow(id) {
            flow.joined = requests;
        }
    }

    /// Asks for a turn; `tell` is kept if it has to wait.
    pub(crate) fn enter(&mut self, id: FlowId, portion: Portion, priority: Priority, now: u64, tell: impl FnOnce() -> W) -> Entry {
        self.advance();
        let (now_tag, queue_max, lead) = (self.now_tag, self.rules.queue_max, units(self.rules.lead));
        let Some(flow) = self.flow(id) else { return Entry::Full };
        flow.portion = portion;
        if flow.idle() {
            flow.tag = flow.tag.max(now_tag);
            flow.key = flow.tag.saturating_sub(lead);
        }
        if flow.waits() == 0 && self.may_go(id, now) {
            self.admit(id, now);
            return Entry::Go;
        }
        let ticket = self.next_ticket;
        let Some(flow) = self.flow(id) else { return Entry::Full };
        if flow.waits() >= queue_max {
            return Entry::Full;
        }
        let (key, coreless) = (flow.key, flow.in_flight == 0);
        let [low, normal, high] = &mut flow.queued;
        let queue = match priority {
            Priority::Low => low,
            Priority::Normal => normal,
            Priority::High => high,
        };
        queue.push_back(Waiter { ticket, tell: tell() });
        self.next_ticket += 1;
        if coreless {
            self.waiting.insert((key, id));
        }
        Entry::Wait(ticket)
    }

    /// Gives a wait up. False when the turn had come already: then it is to be given back.
    pub(crate) fn give_up(&mut self, id: FlowId, ticket: u64) -> bool {
        let Some(flow) = self.flow(id) else { return true };
        let waited = flow.waits();
        flow.queued.iter_mut().for_each(|queue| queue.retain(|waiter| waiter.ticket != ticket));
        let (left, key) = (flow.waits(), flow.key);
        if left == 0 {
            self.waiting.remove(&(key, id));
        }
        left < waited
    }

    /// Gives a turn back; those whose turn has come now are to be told.
    pub(crate) fn leave(&mut self, id: FlowId, now: u64) -> Vec<W> {
        // What one cell cannot use of its tenant's share is not saved up.
        let least = self.waiting.first().map_or(0, |(tag, _)| tag.saturating_sub(units(self.rules.lag)));
        // Nor is what it had of a core that nobody else wanted held against it.
        let most = if self.waiting.is_empty() { self.now_tag + units(self.rules.lag) } else { Tag::MAX };
        let Some(flow) = self.flow(id) else { return Vec::new() };
        let held = now.saturating_sub(flow.paid);
        flow.tag = flow.tag_at(now).min(most).max(least);
        flow.paid = now.max(flow.paid);
        flow.service = held.max(flow.service - flow.service / u64::from(FADE));
        flow.in_flight = flow.in_flight.saturating_sub(1);
        flow.key = flow.tag;
        let (key, gone, waits) = (flow.key, flow.in_flight == 0, flow.waits() > 0);
        self.advance();
        if gone {
            self.running.retain(|running| *running != id);
            if waits {
                self.waiting.insert((key, id));
            }
        }
        self.dispatch(now)
    }

    /// Asks for a core for which nobody waits; it is to be given back by [`Fair::spare_done`]. False when there is none now.
    pub(crate) fn spare(&mut self) -> bool {
        let free = self.has_spare();
        self.spare += usize::from(free);
        free
    }

    /// Whether a core is free that nobody waits for.
    pub(crate) fn has_spare(&self) -> bool {
        self.waiting.is_empty() && self.running.len() + self.spare < self.rules.cores
    }

    /// Gives it back.
    pub(crate) fn spare_done(&mut self) {
        self.spare = self.spare.saturating_sub(1);
    }

    /// Time has passed: those whose turn has come by that are to be told. To be called while anybody waits, each slice or so.
    pub(crate) fn poke(&mut self, now: u64) -> Vec<W> {
        self.dispatch(now)
    }

    /// Requests that wait, of all tenants.
    #[cfg(test)]
    pub(crate) fn waits(&self) -> usize {
        self.flows.iter().flatten().map(Flow::waits).sum()
    }

    fn flow(&mut self, id: FlowId) -> Option<&mut Flow<W>> {
        self.flows.get_mut(id.0)?.as_mut()
    }

    /// Whether the next request of this tenant may go now.
    fn may_go(&self, id: FlowId, now: u64) -> bool {
        let Some(flow) = self.flows.get(id.0).and_then(Option::as_ref) else { return false };
        match self.waiting.first() {
            None if flow.in_flight == 0 => self.has_core(now),
            None => self.has_room(flow),
            // Somebody without a core was here before.
            Some(_) if flow.in_flight == 0 => false,
            Some((tag, _)) => self.has_room(flow) && self.may_go_on(flow, *tag, now),
        }
    }

    /// Whether one more of its requests may lie in its cell.
    fn has_room(&self, flow: &Flow<W>) -> bool {
        let fit = nanos(self.rules.ahead) / flow.service.max(1);
        flow.in_flight < usize::try_from(fit).unwrap_or(usize::MAX).max(flow.joined).clamp(1, self.rules.in_flight_max)
    }

    /// Whether a core is free, or held by a request that takes too long, as is known by now or from those before it.
    fn has_core(&self, now: u64) -> bool {
        let slice = nanos(self.rules.slice);
        let flows = self.running.iter().filter_map(|id| self.flows.get(id.0)?.as_ref());
        flows.filter(|flow| flow.service < slice && now.saturating_sub(flow.since) < slice).count() < self.rules.cores
    }

    fn may_go_on(&self, flow: &Flow<W>, waiting: Tag, now: u64) -> bool {
        flow.tag_at(now) <= waiting + units(self.rules.quantum)
    }

    fn admit(&mut self, id: FlowId, now: u64) {
        let Some(flow) = self.flow(id) else { return };
        let (key, first) = (flow.key, flow.in_flight == 0);
        flow.in_flight += 1;
        flow.since = now;
        if first {
            flow.paid = now;
            self.running.push(id);
            self.waiting.remove(&(key, id));
        }
    }

    fn advance(&mut self) {
        let running = self.running.iter().filter_map(|id| Some(self.flows.get(id.0)?.as_ref()?.tag));
        let least = running.chain(self.waiting.first().map(|(key, _)| *key)).min();
        self.now_tag = self.now_tag.max(least.unwrap_or(0));
    }

    /// Lets in whoever may go.
    fn dispatch(&mut self, now: u64) -> Vec<W> {
        let mut told = Vec::new();
        while let Some(id) = self.next(now) {
            self.admit(id, now);
            told.extend(self.flow(id).and_then(Flow::pop).map(|waiter| waiter.tell));
        }
        told
    }

    fn next(&self, now: u64) -> Option<FlowId> {
        let first = self.waiting.first().copied();
        let in_cores = self.running.iter().filter_map(|id| Some((*id, self.flows.get(id.0)?.as_ref()?)));
        let ready = in_cores.filter(|(_, flow)| flow.waits() > 0 && self.has_room(flow));
        let goes_on = ready.filter(|(_, flow)| first.is_none_or(|(tag, _)| self.may_go_on(flow, tag, now)));
        let goes_on = goes_on.min_by_key(|(id, flow)| (flow.tag_at(now), *id)).map(|(id, _)| id);
        goes_on.or_else(|| first.filter(|_| self.has_core(now)).map(|(_, id)| id))
    }
}

fn units(time: Duration) -> Tag {
    Tag::from(nanos(time)) * UNIT
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
