//! What is made is opened; what is appended is there the next time.

use super::*;

#[test]
fn a_pool_is_made_once_and_opened_often() {
    let base = memory(64);
    assert_eq!(blocking(&base, |b| open(b, 2).err()), Some(StoreError::NotAPool));
    make(&base);
    let again = blocking(&base, |blocking| create(blocking, &params(false)));
    assert_eq!(again, Err(StoreError::PoolThere { name: "pool".into() }));
    for salt in 2..40 {
        let mut rig = Rig::open(&base, salt).unwrap();
        assert_eq!((rig.store.name(), rig.store.uuid(), rig.store.created()), ("pool", POOL, 7));
        let geometry = *rig.store.geometry();
        assert_eq!(rig.store.free_clusters(), u64::from(geometry.clusters - geometry.first_free));
        assert!(rig.store.layers().is_empty() && rig.store.room() > 4096, "start {salt}");
        assert_eq!(rig.run(), []);
        rig.close();
    }
    blocking(&base, |blocking| create(blocking, &params(true))).unwrap();
}

#[test]
fn what_was_appended_is_there_after_each_start() {
    let base = memory(64);
    make(&base);
    let mut model = BTreeMap::new();
    let mut taken = Vec::new();
    for salt in 2..=8 {
        let mut rig = Rig::open(&base, salt).unwrap();
        if salt == 2 {
            let id = rig.store.next_layer();
            rig.append(&[new_layer(id, 1 << 40)]);
        }
        let layer = rig.store.layers()[&1].clone();
        assert_eq!((layer.name.as_str(), layer.size), ("volume1", 1 << 40));
        let clusters = rig.allocate(40);
        assert_eq!(clusters.len(), 40);
        let mut records = Vec::new();
        for (cluster, at) in clusters.iter().zip(u64::from(salt as u32) * 30..) {
            assert!(!taken.contains(cluster), "cluster {cluster} is handed out once");
            let now = Entry::on(*cluster).with_here(salt as u16);
            if let Some(old) = model.insert(at, now).and_then(|old: Entry| old.cluster()) {
                records.push(Record::Free { first: old, count: 1 });
                taken.retain(|taken| *taken != old);
            }
            records.push(entry(1, at, now));
            taken.push(*cluster);
        }
        rig.append(&records);
        assert_eq!(rig.load(1, 0), model);
        let spare = rig.allocate(3);
        rig.store.give_back(&spare[..1]);
        rig.close();
        let mut rig = Rig::open(&base, salt + 100).unwrap();
        assert_eq!(rig.store.room() == 0, salt == 8, "eight starts without a checkpoint");
        assert_eq!(rig.load(1, 0), model);
        assert!(rig.store.room() > 0, "it makes one by itself");
        let geometry = *rig.store.geometry();
        let all = u64::from(geometry.clusters - geometry.first_free);
        assert_eq!(rig.store.free_clusters(), all - taken.len() as u64, "what nobody names is free at the next start");
        rig.close();
    }
}

#[test]
fn a_whole_leaf_is_one_record() {
    let base = memory(64);
    make(&base);
    let mut rig = Rig::open(&base, 2).unwrap();
    let cluster = rig.allocate(1)[0];
    let zero = Entry::EMPTY.with_zero(0xffff);
    rig.append(&[new_layer(1, 1 << 40), entry(1, 3, Entry::on(cluster)), entry(1, 504 * 9, Entry::on(cluster))]);
    rig.append(&[Record::Leaf { layer: 1, leaf: 0, entry: zero }, entry(1, 5, Entry::EMPTY)]);
    let check = |rig: &mut Rig| {
        let leaf = rig.load(1, 0);
        assert!(leaf.len() == 503 && leaf.values().all(|entry| *entry == zero) && !leaf.contains_key(&5));
        assert_eq!(rig.load(1, 9), BTreeMap::from([(504 * 9, Entry::on(cluster))]));
        assert_eq!(rig.load(1, 10), BTreeMap::new());
    };
    check(&mut rig);
    rig.close();
    let mut rig = Rig::open(&base, 3).unwrap();
    check(&mut rig);
    rig.append(&[Record::Free { first: cluster, count: 1 }, Record::Gone(1)]);
    assert!(rig.store.layers().is_empty());
    rig.close();
    let mut rig = Rig::open(&base, 4).unwrap();
    assert!(rig.store.layers().is_empty() && rig.store.next_layer() == 2);
    assert_eq!(rig.load(1, 0), BTreeMap::new());
    rig.close();
}

#[test]
fn large_batches_go_round_the_ring() {
    let base = memory(64);
    make(&base);
    let mut rig = Rig::open(&base, 2).unwrap();
    rig.append(&[new_layer(1, 2 << 30)]);
    let clusters = 32768;
    let zero = |at: u64| Entry::EMPTY.with_zero((at / 7) as u16 | 1);
    let (mut at, mut rounds) = (0, 0);
    while at < 300_000 {
        if rig.store.room() < 40_000 {
            assert!(rig.store.wants_checkpoint());
            rig.store.checkpoint();
            assert!(rig.run().iter().any(|event| matches!(event, Event::Checkpointed(_))));
            rounds += 1;
        }
        let records: Vec<Record> = (at..at + 3000).map(|at| entry(1, at % clusters, zero(at))).collect();
        at += 3000;
        rig.append(&records);
    }
    assert!(rounds > 2, "{rounds}");
    rig.close();
    let mut rig = Rig::open(&base, 3).unwrap();
    for leaf in 0..clusters / 504 {
        let newest = |cluster: u64| (at - 1 - cluster) / clusters * clusters + cluster;
        let expected = (leaf * 504..(leaf + 1) * 504).map(|cluster| (cluster, zero(newest(cluster))));
        assert_eq!(rig.load(1, leaf), expected.collect(), "leaf {leaf}");
    }
    rig.close();
}
