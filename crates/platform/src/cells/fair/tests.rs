//! The queue in a world without threads: cells that work one request after the other, clients that ask again at once, a clock that jumps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules {
    cores: 2,
    queue_max: 512,
    in_flight_max: 32,
    quantum: Duration::from_millis(1),
    ahead: Duration::from_millis(2),
    slice: Duration::from_secs(10),
    lead: Duration::from_millis(50),
    lag: Duration::from_millis(100),
};

const ONE: Portion = Portion { weight: 1, cells: 1 };

/// A tenant whose clients ask again as soon as they are answered.
#[derive(Debug, Clone, Copy)]
struct Tenant {
    weight: u32,
    /// Cells of the tenant, of which this is one.
    cells: u32,
    clients: usize,
    /// How long one request takes, in nanoseconds.
    service: u64,
    /// How long a client thinks between answer and question, in nanoseconds.
    thinks: u64,
    /// When its clients ask first, in nanoseconds.
    begins: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    worked: u64,
    answered: u64,
    waited_max: u64,
}

/// Somebody who waits: which tenant, and since when.
type Asked = (usize, u64);

struct World {
    fair: Fair<Asked>,
    tenants: Vec<Tenant>,
    flows: Vec<FlowId>,
    /// Requests that lie in each cell, and whether it works.
    cells: Vec<(usize, bool)>,
    told: Vec<Told>,
    now: u64,
    /// What happens when: a client asks (true), or a cell answers.
    events: BinaryHeap<Reverse<(u64, usize, bool)>>,
}

impl World {
    fn new(rules: Rules, tenants: &[Tenant]) -> Self {
        let mut fair = Fair::new(rules);
        let flows = tenants.iter().map(|_| fair.join()).collect();
        let mut events = BinaryHeap::new();
        for (at, tenant) in tenants.iter().enumerate() {
            (0..tenant.clients).for_each(|_| events.push(Reverse((tenant.begins, at, true))));
        }
        let many = tenants.len();
        Self { fair, tenants: tenants.to_vec(), flows, cells: vec![(0, false); many], told: vec![Told::default(); many], now: 0, events }
    }

    fn run(mut self, until: u64) -> Vec<Told> {
        while let Some(Reverse((time, at, asks))) = self.events.pop().filter(|Reverse((time, ..))| *time < until) {
            self.now = time;
            if asks {
                self.asks(at)
            } else {
                self.answers(at)
            }
            assert!(self.fair.running.len() <= self.fair.rules.cores);
            assert!(self.fair.waiting.is_empty() || self.fair.running.len() == self.fair.rules.cores, "a core is free and somebody waits");
        }
        self.told
    }

    fn asks(&mut self, at: usize) {
        let (id, Tenant { weight, cells, .. }, now) = (self.flows[at], self.tenants[at], self.now);
        match self.fair.enter(id, Portion { weight, cells }, Priority::Normal, now, || (at, now)) {
            Entry::Go => self.begins(at, now),
            Entry::Wait(_) => {}
            Entry::Full => panic!("the queue is long enough"),
        }
    }

    fn begins(&mut self, at: usize, asked: u64) {
        self.told[at].waited_max = self.told[at].waited_max.max(self.now - asked);
        self.cells[at].0 += 1;
        self.works(at);
    }

    fn works(&mut self, at: usize) {
        if let (1.., false) = self.cells[at] {
            self.cells[at].1 = true;
            self.events.push(Reverse((self.now + self.tenants[at].service, at, false)));
        }
    }

    fn answers(&mut self, at: usize) {
        self.cells[at] = (self.cells[at].0 - 1, false);
        self.told[at].worked += self.tenants[at].service;
        self.told[at].answered += 1;
        for (other, asked) in self.fair.leave(self.flows[at], self.now) {
            self.begins(other, asked);
        }
        self.works(at);
        self.events.push(Reverse((self.now + self.tenants[at].thinks, at, true)));
    }
}

fn seconds(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    sum * sum / (shares.len() as f64 * squares)
}

fn busy() -> impl Strategy<Value = Tenant> {
    (1..9u32, 1..4u32, 2..40usize, 10_000..5_000_000u64).prop_map(|(weight, cells, clients, service)| Tenant {
        weight,
        cells,
        clients,
        service,
        thinks: 0,
        begins: 0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Of one core that all want, each gets its weight's share, or its cell's part of it: to a quantum, and what lies in a cell when the quantum ends.
    #[test]
    fn shares_follow_weights(tenants in prop::collection::vec(busy(), 2..9)) {
        let told = World::new(Rules { cores: 1, ..RULES }, &tenants).run(seconds(5));
        let (quantum, ahead) = (nanos(RULES.quantum) as f64, nanos(RULES.ahead) as f64);
        let share = |at: usize| f64::from(tenants[at].weight) / f64::from(tenants[at].cells);
        let normal = |at: usize| told[at].worked as f64 / share(at);
        let over = |at: usize| (ahead + tenants[at].service as f64) / share(at);
        for one in 0..tenants.len() {
            for other in 0..one {
                let (apart, bound) = ((normal(one) - normal(other)).abs(), quantum + over(one) + over(other));
                prop_assert!(apart <= bound, "{apart} of {bound}: {tenants:?} {told:?}");
            }
        }
        // And nothing is left lying: the core works all the time.
        let worked: u64 = told.iter().map(|told| told.worked).sum();
        prop_assert!(worked + seconds(1) / 20 >= seconds(5), "{worked}");
    }

    /// With several cores, none of which anybody can take two of.
    #[test]
    fn shares_follow_weights_as_far_as_one_core_goes(light in 3..12usize, weight in 1..40u32, service in 10_000..3_000_000u64) {
        let tenant = Tenant { weight: 1, cells: 1, clients: 20, service, thinks: 0, begins: 0 };
        let mut tenants = vec![tenant; light];
        tenants.push(Tenant { weight, ..tenant });
        let told = World::new(RULES, &tenants).run(seconds(20));
        let share = |at: usize| told[at].worked as f64 / seconds(20) as f64;
        let fair = (f64::from(weight) * 2.0 / (light as f64 + f64::from(weight))).min(1.0);
        prop_assert!((share(light) - fair).abs() < 0.03, "{} instead of {fair}: {told:?}", share(light));
        let others: Vec<f64> = (0..light).map(share).collect();
        prop_assert!(jain(&others) > 0.99, "{others:?}");
    }

    /// Somebody who asks for less than its share waits for what runs, however many flood and however heavy they are said to be.
    #[test]
    fn a_flood_delays_nobody_by_more_than_its_requests_time(
        floods in prop::collection::vec((1..20u32, 10_000..20_000_000u64), 2..12),
        thinks in 0..50_000_000u64,
        cores in 1..4usize,
    ) {
        let weights: u32 = 1 + floods.iter().map(|(weight, _)| *weight).sum::<u32>();
        let thinks = thinks + 2 * 100_000 * u64::from(weights);
        let mut tenants: Vec<_> =
            floods.iter().map(|(weight, service)| Tenant { weight: *weight, cells: 1, clients: 64, service: *service, thinks: 0, begins: 0 }).collect();
        tenants.push(Tenant { weight: 1, cells: 1, clients: 1, service: 100_000, thinks, begins: seconds(1) });
        let told = World::new(Rules { cores, ..RULES }, &tenants).run(seconds(10));
        let victim = told.last().unwrap();
        let longest = floods.iter().map(|(_, service)| *service).max().unwrap().max(nanos(RULES.ahead));
        let bound = longest;
        prop_assert!(victim.waited_max <= bound, "waited {} of {bound}", victim.waited_max);
        prop_assert!(victim.answered >= seconds(9) / (thinks + bound + 100_000) - 1, "{victim:?}");
    }

    /// Whatever is asked, given up and given back, in whatever order: nobody is forgotten, nobody is let in twice.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec((0..4usize, 0..3u8, 0..3usize, 0..2_000_000u64), 1..400), cores in 1..4usize) {
        let mut fair: Fair<u64> = Fair::new(Rules { cores, queue_max: 16, in_flight_max: 3, ..RULES });
        let flows: Vec<_> = (0..4).map(|_| fair.join()).collect();
        let (mut waiting, mut inside, mut now) = (vec![vec![]; 4], [0usize; 4], 0);
        let mut owner = std::collections::HashMap::new();
        let mut serial = 0u64;
        for (at, what, priority, passes) in steps {
            now += passes;
            match what {
                0 => {
                    let priority = [Priority::Low, Priority::Normal, Priority::High][priority];
                    serial += 1;
                    match fair.enter(flows[at], Portion { weight: 1 + at as u32, cells: 1 }, priority, now, || serial) {
                        Entry::Go => inside[at] += 1,
                        Entry::Wait(ticket) => {
                            waiting[at].push((ticket, serial));
                            owner.insert(serial, at);
                        }
                        Entry::Full => prop_assert!(waiting[at].len() == 16),
                    }
                }
                1 if !waiting[at].is_empty() => {
                    let (ticket, _) = waiting[at].swap_remove(0);
                    prop_assert!(fair.give_up(flows[at], ticket), "who was not told still waits");
                    prop_assert!(!fair.give_up(flows[at], ticket), "and only once");
                }
                2 if inside[at] > 0 => {
                    inside[at] -= 1;
                    for told in fair.leave(flows[at], now) {
                        let whose = owner[&told];
                        let known = waiting[whose].iter().position(|(_, serial)| *serial == told);
                        waiting[whose].swap_remove(known.expect("told once, and only who waits"));
                        inside[whose] += 1;
                    }
                }
                _ => {}
            }
            prop_assert!(inside.iter().filter(|many| **many > 0).count() <= cores);
            prop_assert_eq!(fair.waits(), waiting.iter().map(Vec::len).sum::<usize>());
        }
        while let Some(at) = inside.iter().position(|many| *many > 0) {
            now += 1000;
            inside[at] -= 1;
            for told in fair.leave(flows[at], now) {
                inside[owner[&told]] += 1;
            }
        }
        prop_assert_eq!(fair.waits(), 0);
    }
}

#[test]
fn twenty_equal_tenants_are_served_equally_whatever_they_send() {
    let services = [20_000, 300_000, 1_500_000, 8_600_000];
    let tenant = |at: usize| Tenant { weight: 1, cells: 1, clients: 2 + 7 * (at % 10), service: services[at % 4], thinks: 0, begins: 0 };
    let tenants: Vec<_> = (0..20).map(tenant).collect();
    let told = World::new(RULES, &tenants).run(seconds(30));
    let shares: Vec<f64> = told.iter().map(|told| told.worked as f64).collect();
    let index = jain(&shares);
    assert!(index >= 0.97, "{index}: {told:?}");
    println!("Jain's index of 20 tenants, 2 to 65 clients, requests of 20 µs to 8.6 ms: {index:.4}");
}

#[test]
fn a_priority_moves_nothing_between_tenants() {
    let mut fair: Fair<&str> = Fair::new(Rules { cores: 1, ..RULES });
    let (one, other) = (fair.join(), fair.join());
    assert_eq!(fair.enter(one, ONE, Priority::Normal, 0, || "running"), Entry::Go);
    for (flow, priority, name) in [
        (one, Priority::Low, "low"),
        (one, Priority::Normal, "normal"),
        (other, Priority::Low, "another's low"),
        (one, Priority::High, "high"),
        (one, Priority::High, "high too"),
    ] {
        assert!(matches!(fair.enter(flow, ONE, priority, 10, || name), Entry::Wait(_)));
    }
    // Ten milliseconds were had: the other tenant's turn, however low it says it is.
    assert_eq!(fair.leave(one, 10_000_000), ["another's low"]);
    assert_eq!(fair.leave(other, 11_000_000), ["high"]);
    let mut order = vec![];
    let mut now = 11_000_000;
    for _ in 0..3 {
        now += 5_000_000;
        order.extend(fair.leave(one, now));
    }
    assert_eq!(order, ["high too", "normal", "low"]);
}

#[test]
fn an_endless_request_keeps_its_core_from_others_for_a_slice() {
    let mut fair: Fair<&str> = Fair::new(Rules { cores: 1, slice: Duration::from_millis(20), ..RULES });
    let flows = [fair.join(), fair.join(), fair.join()];
    let ms = |ms: u64| ms * 1_000_000;
    assert_eq!(fair.enter(flows[0], ONE, Priority::Normal, 0, || "endless"), Entry::Go);
    assert!(matches!(fair.enter(flows[1], ONE, Priority::Normal, ms(1), || "one"), Entry::Wait(_)));
    assert!(fair.poke(ms(19)).is_empty());
    assert_eq!(fair.poke(ms(20)), ["one"]);
    assert!(matches!(fair.enter(flows[2], ONE, Priority::Normal, ms(21), || "two"), Entry::Wait(_)), "one core is still one core");
    assert!(matches!(fair.enter(flows[0], ONE, Priority::Normal, ms(22), || "endless too"), Entry::Wait(_)));
    assert!(fair.poke(ms(25)).is_empty());
    assert_eq!(fair.leave(flows[1], ms(26)), ["two"]);
    assert!(fair.leave(flows[2], ms(27)).is_empty(), "who has one that does not end gets no second one");
    assert_eq!(fair.enter(flows[1], ONE, Priority::Normal, ms(28), || "at once"), Entry::Go, "it is known by now: nobody waits for it");
    assert!(fair.leave(flows[1], ms(29)).is_empty());
    assert_eq!(fair.leave(flows[0], ms(900)), ["endless too"]);
}

#[test]
fn requests_known_to_be_long_keep_no_core_from_others() {
    let mut fair: Fair<&str> = Fair::new(Rules { cores: 1, slice: Duration::from_millis(1), ..RULES });
    let (heavy, light) = (fair.join(), fair.join());
    let ms = |ms: u64| ms * 1_000_000;
    assert_eq!(fair.enter(heavy, ONE, Priority::Normal, 0, || "heavy"), Entry::Go);
    assert!(matches!(fair.enter(heavy, ONE, Priority::Normal, 0, || "heavy too"), Entry::Wait(_)));
    assert_eq!(fair.leave(heavy, ms(10)), ["heavy too"]);
    assert_eq!(fair.enter(light, ONE, Priority::Normal, ms(10), || "light"), Entry::Go, "the kernel takes the other one off its core");
    assert!(matches!(fair.enter(heavy, ONE, Priority::Normal, ms(10), || "heavy again"), Entry::Wait(_)), "a cell has one core");
    assert!(fair.leave(light, ms(11)).is_empty());
}

#[test]
fn short_requests_buy_no_core_for_long_ones() {
    let mut fair: Fair<&str> = Fair::new(Rules { cores: 1, slice: Duration::from_millis(20), ..RULES });
    let (flood, victim) = (fair.join(), fair.join());
    let ms = |ms: u64| ms * 1_000_000;
    for _ in 0..200 {
        assert_eq!(fair.enter(flood, ONE, Priority::Normal, 0, || "short"), Entry::Go);
        assert!(fair.leave(flood, 1_000).is_empty());
    }
    // Known for short ones, it has a cell full of requests that take 15 ms each.
    for _ in 0..RULES.in_flight_max {
        assert_eq!(fair.enter(flood, ONE, Priority::Normal, ms(1), || "long"), Entry::Go);
    }
    assert!(matches!(fair.enter(victim, ONE, Priority::Normal, ms(2), || "victim"), Entry::Wait(_)));
    assert!(fair.leave(flood, ms(16)).is_empty());
    assert!(fair.poke(ms(20)).is_empty());
    assert_eq!(fair.poke(ms(21)), ["victim"], "an answer is no new slice");
}

#[test]
fn a_core_that_nobody_wants_is_free_and_full_is_said() {
    let mut fair: Fair<u32> = Fair::new(Rules { cores: 1, queue_max: 2, in_flight_max: 2, ..RULES });
    let flow = fair.join();
    let mut now = 0;
    // As long as one at a time takes a microsecond, two may lie in the cell.
    for _ in 0..100 {
        assert_eq!(fair.enter(flow, ONE, Priority::Normal, now, || 0), Entry::Go);
        now += 1_000;
        assert!(fair.leave(flow, now).is_empty());
    }
    let mut entered = || fair.enter(flow, ONE, Priority::Normal, now, || 0);
    assert_eq!([entered(), entered()], [Entry::Go, Entry::Go]);
    assert!(matches!([entered(), entered(), entered()], [Entry::Wait(_), Entry::Wait(_), Entry::Full]));
    assert_eq!(fair.leave(flow, now), [0]);
    fair.part(flow);
    let next = fair.join();
    assert_eq!(next, flow, "places are used again");
    assert_eq!(fair.enter(next, ONE, Priority::Normal, now, || 0), Entry::Go, "and know nothing of who was there");
}

#[test]
fn requests_that_are_worked_on_together_lie_in_the_cell_together() {
    let mut fair: Fair<u32> = Fair::new(Rules { cores: 1, in_flight_max: 16, ..RULES });
    let (alone, joined) = (fair.join(), fair.join());
    fair.joins(joined, 8);
    for (flow, room) in [(alone, 1), (joined, 8)] {
        // Nothing is known of them, so each may take long.
        for _ in 0..room {
            assert_eq!(fair.enter(flow, ONE, Priority::Normal, 0, || 0), Entry::Go);
        }
        assert!(matches!(fair.enter(flow, ONE, Priority::Normal, 0, || 0), Entry::Wait(0..)));
        let left: usize = (0..=room).map(|_| fair.leave(flow, 1_000_000_000).len()).sum();
        assert_eq!(left, 1, "who waited went when there was room");
    }
}

#[test]
fn what_one_had_of_a_core_that_nobody_wanted_is_not_held_against_it() {
    let flood = Tenant { weight: 1, cells: 1, clients: 20, service: 10_000_000, thinks: 0, begins: 0 };
    let later = Tenant { begins: seconds(29), ..flood };
    let told = World::new(RULES, &[Tenant { weight: 100, ..flood }, flood, later, later, later]).run(seconds(40));
    let share = |at: usize| told[at].worked as f64;
    assert!(share(1) > share(2) + 28e9, "it has its share beside those who came later: {told:?}");
}
