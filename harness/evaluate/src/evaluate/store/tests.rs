use super::*;
use crate::evaluate::test_folder;

fn purpose(from: u64, to: u64) -> Purpose {
    Purpose {
        key: "k".to_owned(),
        stamp: "s".to_owned(),
        total: 40,
        from,
        to,
        widths: [3, 2, 4],
        steps: true,
        part: false,
    }
}

fn part(from: u64, to: u64) -> Purpose {
    Purpose { part: true, ..purpose(from, to) }
}

/// Features and pixels of images `from..to`.
fn chunk(from: u64, to: u64) -> (Vec<u8>, Activations, Vec<u32>) {
    let values = |salt: u64, width: u64| -> Vec<f32> {
        (from * width..to * width).map(|i| ((i * 7919 + salt) % 1009) as f32 / 64.0).collect()
    };
    let pixels = (from * 6..to * 6).map(|i| (i * 31) as u8).collect();
    let (features, spatial, logits) = (values(1, 3), Some(values(2, 2)), Some(values(3, 4)));
    let found = Activations { count: (to - from) as usize, width: 3, features, spatial, logits };
    (pixels, found, (from as u32..to as u32).collect())
}

fn add(store: &mut Store, from: u64, to: u64, compute: &Compute) {
    let (pixels, found, steps) = chunk(from, to);
    store.add(&pixels, &found, Some(&steps), compute).unwrap();
}

/// Everything that numbers are made of.
fn whole(store: &Store, compute: &Compute) -> (Moments, Option<Moments>, Vec<u8>, Vec<u8>, String) {
    let logits = store.logits().unwrap().unwrap().to_vec();
    (
        store.moments(compute).unwrap(),
        store.spatial_moments(compute).unwrap(),
        store.pool().unwrap().to_vec(),
        logits,
        store.pixels_sha256().unwrap(),
    )
}

#[test]
fn an_interrupted_store_goes_on_as_if_it_had_not_been() {
    let (_guard, root) = test_folder();
    let compute = Compute::new(2).unwrap();
    let mut plain = Store::open(&root.join("plain"), purpose(0, 40)).unwrap();
    add(&mut plain, 0, 40, &compute);

    let folder = root.join("x");
    let mut store = Store::open(&folder, purpose(0, 40)).unwrap();
    add(&mut store, 0, 13, &compute);
    // The process ended after rows were written and before they were committed.
    let (_, rest, _) = chunk(13, 20);
    let bytes: Vec<u8> = rest.features.iter().flat_map(|v| v.to_le_bytes()).collect();
    store.write_rows(POOL, 0, &bytes[..50]).unwrap();
    drop(store);
    fs_err::write(folder.join(".dpar-export-x.part"), b"half").unwrap();
    let mut store = Store::open(&folder, purpose(0, 40)).unwrap();
    assert_eq!((store.count(), folder.read_dir_utf8().unwrap().count()), (13, 5));
    add(&mut store, 13, 20, &compute);
    add(&mut store, 20, 40, &compute);
    assert_eq!(whole(&store, &compute), whole(&plain, &compute));
    assert_eq!(store.mean_steps().unwrap(), Some(19.5));
    assert_eq!(
        fs_err::read(folder.join(STATE)).unwrap(),
        fs_err::read(root.join("plain").join(STATE)).unwrap()
    );
    let (pixels, more, steps) = chunk(0, 1);
    let error = store.add(&pixels, &more, Some(&steps), &compute).unwrap_err().to_string();
    assert!(error.contains("more than 40"), "{error}");
}

#[test]
fn shards_are_merged_in_their_order_once_and_whole() {
    let (_guard, root) = test_folder();
    let compute = Compute::new(1).unwrap();
    let mut plain = Store::open(&root.join("plain"), purpose(0, 40)).unwrap();
    add(&mut plain, 0, 40, &compute);
    let shard = |name: &str, from, to, end| {
        let mut store = Store::open(&root.join(name), part(from, to)).unwrap();
        add(&mut store, from, end, &compute);
        store
    };
    let elsewhere = Purpose { stamp: "another machine's".to_owned(), ..part(0, 24) };
    let mut copy = Store::open(&root.join("copy"), elsewhere).unwrap();
    add(&mut copy, 0, 24, &compute);
    Store::open(&root.join("of copies"), purpose(0, 40)).unwrap().merge(&copy, &compute).unwrap();
    let (a, b, short) = (shard("a", 0, 24, 24), shard("b", 24, 40, 40), shard("c", 24, 40, 30));
    let mut merged = Store::open(&root.join("merged"), purpose(0, 40)).unwrap();
    let wrong = merged.merge(&b, &compute).unwrap_err().to_string();
    assert!(wrong.contains("where image 0 comes next"), "{wrong}");
    merged.merge(&a, &compute).unwrap();
    assert!(merged.merge(&short, &compute).is_err());
    // Once more, as after an interruption: nothing is added, and nothing else passes for it.
    merged.merge(&a, &compute).unwrap();
    assert_eq!(merged.count(), 24);
    let foreign = Purpose { key: "other".to_owned(), ..part(0, 24) };
    let mut foreign = Store::open(&root.join("foreign"), foreign).unwrap();
    add(&mut foreign, 0, 24, &compute);
    let refused = merged.merge(&foreign, &compute).unwrap_err().to_string();
    assert!(refused.contains("other images, or with other options"), "{refused}");
    // As it is on the disk: spatial features are not kept, and are compared all the same.
    drop(merged);
    let mut merged = Store::open(&root.join("merged"), purpose(0, 40)).unwrap();
    for (name, spatial) in [("changed", false), ("changed spatial", true)] {
        let mut changed = Store::open(&root.join(name), part(0, 24)).unwrap();
        let (pixels, mut found, steps) = chunk(0, 24);
        match &mut found.spatial {
            Some(values) if spatial => values[40] += 1.0,
            _ => found.features[50] += 1.0,
        }
        changed.add(&pixels, &found, Some(&steps), &compute).unwrap();
        let refused = merged.merge(&changed, &compute).unwrap_err().to_string();
        assert!(refused.contains("other features of the images 0 to 24"), "{name}: {refused}");
    }
    merged.merge(&a, &compute).unwrap();
    merged.merge(&b, &compute).unwrap();
    assert_eq!(whole(&merged, &compute), whole(&plain, &compute));
    // A single part may be all.
    let all = shard("all", 0, 40, 40);
    assert!(all.moments(&compute).unwrap_err().to_string().contains("holds a part"));
    let mut one = Store::open(&root.join("one"), purpose(0, 40)).unwrap();
    one.merge(&all, &compute).unwrap();
    assert_eq!(whole(&one, &compute), whole(&plain, &compute));
    let refused = one.merge(&plain, &compute).unwrap_err().to_string();
    assert!(refused.contains("no part of one"), "{refused}");
}

#[test]
fn images_are_the_same_up_to_the_first_that_differs() {
    let (_guard, root) = test_folder();
    let compute = Compute::new(1).unwrap();
    let mut stores = ["a", "b"].map(|name| Store::open(&root.join(name), purpose(0, 40)).unwrap());
    for (store, changed) in stores.iter_mut().zip([false, true]) {
        let (mut pixels, found, steps) = chunk(0, 16);
        pixels[8 * 6] ^= u8::from(changed);
        store.add(&pixels, &found, Some(&steps), &compute).unwrap();
    }
    let [a, b] = stores;
    for (count, same) in [(1, true), (8, true), (9, false), (16, false)] {
        assert_eq!(a.same_images(&b, count).unwrap(), same, "{count}");
    }
    assert!(!a.same_images(&a, 17).unwrap(), "there are 16");
}

#[test]
fn a_call_that_fails_leaves_the_store_as_it_was() {
    let (_guard, root) = test_folder();
    let compute = Compute::new(1).unwrap();
    let mut plain = Store::open(&root.join("plain"), purpose(0, 40)).unwrap();
    add(&mut plain, 0, 40, &compute);
    let folder = root.join("x");
    let mut store = Store::open(&folder, purpose(0, 40)).unwrap();
    add(&mut store, 0, 16, &compute);
    let (pixels, found, steps) = chunk(16, 40);
    // A folder in the place of a file that comes after others: what came before it was written.
    for name in [LOGITS, STEPS, STATE] {
        let (path, aside) = (folder.join(name), root.join("aside"));
        fs_err::rename(&path, &aside).unwrap();
        fs_err::create_dir(&path).unwrap();
        assert!(store.add(&pixels, &found, Some(&steps), &compute).is_err(), "{name}");
        assert_eq!(store.count(), 16, "{name}");
        fs_err::remove_dir(&path).unwrap();
        fs_err::rename(&aside, &path).unwrap();
    }
    store.add(&pixels, &found, Some(&steps), &compute).unwrap();
    assert_eq!(whole(&Store::read(&folder).unwrap(), &compute), whole(&plain, &compute));
}

#[test]
fn another_purpose_and_damage_are_refused() {
    let (_guard, root) = test_folder();
    let compute = Compute::new(1).unwrap();
    let mut store = Store::open(&root, purpose(0, 40)).unwrap();
    add(&mut store, 0, 8, &compute);
    let other = Purpose { key: "other".to_owned(), ..purpose(0, 40) };
    assert!(Store::open(&root, other).unwrap_err().to_string().contains("other options"));
    let touched = Purpose { stamp: "later".to_owned(), ..purpose(0, 40) };
    assert!(Store::open(&root, touched).unwrap_err().to_string().contains("written again"));
    // Rows of the same length.
    let rows = fs_err::read(root.join(LOGITS)).unwrap();
    let mut bad = rows.clone();
    bad[5] ^= 1;
    fs_err::write(root.join(LOGITS), bad).unwrap();
    for error in [Store::read(&root).unwrap_err(), Store::open(&root, purpose(0, 40)).unwrap_err()] {
        assert!(matches!(error, EvaluateError::Run(RunError::Integrity { .. })), "{error}");
        assert!(error.to_string().contains("logits.f32"), "{error}");
    }
    fs_err::write(root.join(LOGITS), rows).unwrap();
    let state = fs_err::read(root.join(STATE)).unwrap();
    for at in [0, 9, 30, state.len() - 40, state.len() - 1] {
        let mut bad = state.clone();
        bad[at] ^= 1;
        fs_err::write(root.join(STATE), bad).unwrap();
        assert!(Store::open(&root, purpose(0, 40)).unwrap_err().to_string().contains("damaged"), "{at}");
    }
    for end in [0, 8, 31, state.len() / 2] {
        fs_err::write(root.join(STATE), &state[..end]).unwrap();
        assert!(Store::read(&root).unwrap_err().to_string().contains("damaged"), "{end}");
    }
    fs_err::write(root.join(STATE), &state).unwrap();
    fs_err::write(root.join(POOL), b"").unwrap();
    assert!(Store::open(&root, purpose(0, 40)).unwrap_err().to_string().contains("were committed"));
    let (pixels, mut found, steps) = chunk(8, 9);
    let error = store.add(&pixels, &found, None, &compute).unwrap_err().to_string();
    assert!(error.contains("0 step counts"), "{error}");
    found.logits = None;
    assert!(store.add(&pixels, &found, Some(&steps), &compute).is_err());
}
