//! Names that are taken, late comers, killed runs.

use super::*;

const KIND: FolderKind = FolderKind { marks: &["mark"], writes: |name| ["mark", "new"].contains(&name) };

pub(super) fn temp() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().canonicalize().unwrap()).unwrap();
    (dir, path)
}

pub(super) fn names(folder: &Utf8Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    names.sort();
    names
}

pub(super) fn text(path: &Utf8Path) -> String {
    fs_err::read_to_string(path).unwrap()
}

/// An output with `text` in it, not in its place yet.
fn made(output: &Utf8Path, replace: bool, text: &str) -> StagedFolder {
    let staged = StagedFolder::create(output, replace, &KIND).unwrap();
    for name in ["mark", "new"] {
        fs_err::write(staged.path().join(name), text).unwrap();
    }
    staged
}

#[test]
fn an_abandoned_output_leaves_nothing() {
    let (_guard, root) = temp();
    fs_err::create_dir_all(root.join("a/there")).unwrap();
    for name in ["a/out", "a/there"] {
        drop(made(&root.join(name), false, "1"));
    }
    let file = StagedFile::create(&root.join("a/x.npz"), false).unwrap();
    file.write(b"1").unwrap();
    drop(file);
    assert_eq!(names(&root.join("a")), ["there"]);
    assert!(names(&root.join("a/there")).is_empty());
}

#[test]
fn a_name_is_taken_once_whatever_is_there() {
    let (_guard, root) = temp();
    fs_err::create_dir(root.join("empty")).unwrap();
    made(&root.join("full"), false, "0").commit().unwrap();
    for (name, replace) in [("out", false), ("out", true), ("empty", false), ("full", true)] {
        let out = root.join(name);
        let first = made(&out, replace, "1");
        for again in [out.clone(), root.join("none/..").join(name)] {
            let second = StagedFolder::create(&again, true, &KIND).unwrap_err();
            assert!(matches!(&second, StagingError::Busy(p) if *p == out), "{name}: {second}");
        }
        drop(first);
        drop(made(&out, replace, "2"));
    }
    let file = StagedFile::create(&root.join("x"), false).unwrap();
    assert!(matches!(StagedFile::create(&root.join("x"), true), Err(StagingError::Busy(_))));
    file.write(b"x").unwrap();
    file.commit().unwrap();
    assert!(matches!(StagedFile::create(&root.join("x"), false), Err(StagingError::Exists(_))));
    assert!(matches!(StagedFile::create(&root.join("full"), true), Err(StagingError::NotAFile(_))));
    assert_eq!(names(&root), ["empty", "full", "x"]);
}

#[test]
fn only_an_earlier_output_is_replaced_and_only_when_asked() {
    let (_guard, root) = temp();
    let out = root.join("out");
    fs_err::create_dir(&out).unwrap();
    made(&out, false, "1").commit().unwrap();
    fs_err::write(out.join("precious"), "1").unwrap();
    for replace in [false, true] {
        let e = StagedFolder::create(&out, replace, &KIND).unwrap_err();
        assert!(
            matches!(e, StagingError::Foreign { .. }) && e.to_string().contains("holds `precious`"),
            "{e}"
        );
        let file = out.join("precious");
        let e = StagedFolder::create(&file, replace, &KIND).unwrap_err().to_string();
        assert_eq!(e, format!("{file} is no folder"));
    }
    fs_err::remove_file(out.join("precious")).unwrap();
    let e = StagedFolder::create(&out, false, &KIND).unwrap_err();
    assert!(matches!(e, StagingError::Exists(_)), "{e}");
    let staged = StagedFolder::create(&out, true, &KIND).unwrap();
    fs_err::write(staged.path().join("new"), "2").unwrap();
    staged.commit().unwrap();
    assert_eq!((names(&out), text(&out.join("new"))), (vec!["new".to_owned()], "2".to_owned()));
    assert_eq!(names(&root), ["out"]);
}

#[test]
fn what_comes_late_stays_and_the_result_is_kept_beside() {
    let (_guard, root) = temp();
    // What is there at the start, what is done meanwhile, what is there then.
    type Change = fn(&Utf8Path);
    let fill: Change = |p| fs_err::create_dir(p).and_then(|()| fs_err::write(p.join("x"), "late")).unwrap();
    let empty: Change = |p| fs_err::create_dir(p).unwrap();
    let earlier: Change = |p| made(p, false, "earlier").commit().unwrap();
    let add: Change = |p| fs_err::write(p.join("x"), "late").unwrap();
    let rewrite: Change = |p| fs_err::write(p.join("new"), "rewritten").unwrap();
    let swap: Change = |p| {
        fs_err::remove_dir_all(p).unwrap();
        fs_err::create_dir(p).and_then(|()| fs_err::write(p.join("mark"), "earlier")).unwrap();
    };
    let file: Change = |p| fs_err::write(p, "late").unwrap();
    let nothing: Change = |_| {};
    for (i, (before, late)) in [
        (nothing, fill),
        (nothing, empty),
        (nothing, file),
        (empty, add),
        (empty, rewrite),
        (earlier, add),
        (earlier, rewrite),
        (earlier, swap),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = root.join(i.to_string());
        fs_err::create_dir(&folder).unwrap();
        let out = folder.join("out");
        before(&out);
        let staged = made(&out, true, "result");
        late(&out);
        let there = Identity::of(&out).unwrap();
        let Err(StagingError::Conflict { output, kept }) = staged.commit() else { panic!("{i}: replaced") };
        assert_eq!((output, &kept), (out.clone(), &folder.join("out.1")));
        assert!(there == Identity::of(&out).unwrap(), "{i}: changed");
        assert_eq!(text(&kept.join("new")), "result", "{i}");
        assert_eq!(names(&folder), ["out", "out.1"]);
    }
    // Gone is not late: nothing is replaced then.
    let out = root.join("gone");
    earlier(&out);
    let staged = made(&out, true, "result");
    fs_err::remove_dir_all(&out).unwrap();
    staged.commit().unwrap();
    assert_eq!(text(&out.join("new")), "result");
}

#[test]
fn a_file_replaces_what_was_there_and_nothing_later() {
    let (_guard, root) = temp();
    let out = root.join("s.npz");
    for (before, late, kept) in [
        (None, None, None),
        (None, Some("late"), Some("s.1.npz")),
        (Some("earlier"), None, None),
        (Some("earlier"), Some("late"), Some("s.2.npz")),
    ] {
        let _ = fs_err::remove_file(&out);
        if let Some(text) = before {
            fs_err::write(&out, text).unwrap();
        }
        let file = StagedFile::create(&out, true).unwrap();
        file.write(b"result").unwrap();
        if let Some(text) = late {
            fs_err::write(&out, text).unwrap();
        }
        match file.commit() {
            Ok(()) => assert_eq!((text(&out).as_str(), kept), ("result", None)),
            Err(StagingError::Conflict { kept: at, .. }) => {
                assert_eq!((at.file_name(), text(&out).as_str()), (kept, late.unwrap()));
                assert_eq!(text(&at), "result");
            }
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(names(&root), ["s.1.npz", "s.2.npz", "s.npz"]);
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_in_that_place() {
    let (_guard, root) = temp();
    fs_err::create_dir(root.join("empty")).unwrap();
    for name in ["out", "other", "empty"] {
        made(&root.join(name), false, "half").staged.claim.kill();
    }
    StagedFile::create(&root.join("x.npz"), false).unwrap().0.claim.kill();
    fs_err::write(root.join(".dpar-export-aB3x9z.part"), "half").unwrap();
    // Not ours, or of a living run.
    fs_err::create_dir(root.join(".dpar-export-notours")).unwrap();
    let living = made(&root.join("living"), false, "1");
    made(&root.join("out"), false, "1").commit().unwrap();
    for replace in [false, true] {
        assert_eq!(names(&root.join("empty")).len(), 1, "left in the folder itself");
        let staged = made(&root.join("empty"), replace, "1");
        match replace {
            false => staged.staged.claim.kill(),
            true => staged.commit().unwrap(),
        }
    }
    living.commit().unwrap();
    assert_eq!(names(&root), [".dpar-export-notours", "empty", "living", "out"]);
    assert_eq!(names(&root.join("empty")), ["mark", "new"]);
}

#[test]
fn a_replacing_that_was_killed_between_its_two_renames_is_taken_back() {
    for (new, late) in [(true, false), (true, true), (false, false)] {
        let (_guard, root) = temp();
        let out = root.join("out");
        made(&out, false, "earlier").commit().unwrap();
        let staged = made(&out, true, "result").staged;
        let old = staged.claim.old_path(&out);
        fs_err::rename(&out, &old).unwrap();
        if !new {
            fs_err::rename(&staged.new, &out).unwrap();
        } else if late {
            fs_err::create_dir(&out).unwrap();
        }
        staged.claim.kill();
        recover(&out);
        match (new, late) {
            (true, false) => assert_eq!(text(&out.join("new")), "earlier"),
            (true, true) => assert_eq!(text(&root.join("out.1/new")), "earlier"),
            (false, _) => assert_eq!(text(&out.join("new")), "result"),
        }
        assert_eq!(names(&root).len(), if late { 2 } else { 1 });
    }
}

#[test]
fn names_may_be_as_long_as_the_file_system_takes_them() {
    let (_guard, root) = temp();
    for length in [237, 254, 255] {
        let out = root.join("n".repeat(length));
        let staged = made(&out, false, "1");
        fs_err::create_dir(&out).unwrap();
        let Err(StagingError::Conflict { kept, .. }) = staged.commit() else { panic!("replaced") };
        assert_eq!(kept.file_name().unwrap().len(), 255.min(length + 2));
        fs_err::remove_dir(&out).unwrap();
        made(&out, false, "1").commit().unwrap();
        made(&out, true, "2").commit().unwrap();
        assert_eq!(text(&out.join("new")), "2");
        let file = StagedFile::create(&root.join("f".repeat(length)), false).unwrap();
        file.write(b"1").unwrap();
        file.commit().unwrap();
    }
}

#[cfg(unix)]
#[test]
fn places_meet_through_links_parents_and_names() {
    let (_guard, root) = temp();
    let link = |to: &Utf8Path, at: &Utf8Path| std::os::unix::fs::symlink(to, at);
    fs_err::create_dir_all(root.join("bundle/onnx")).unwrap();
    fs_err::create_dir(root.join("other")).unwrap();
    fs_err::write(root.join("bundle/x"), "x").unwrap();
    fs_err::hard_link(root.join("bundle/x"), root.join("hard")).unwrap();
    link(&root.join("bundle"), &root.join("link")).unwrap();
    link(Utf8Path::new("../bundle/onnx"), &root.join("other/onnx")).unwrap();
    link(&root.join("nowhere"), &root.join("dangling")).unwrap();
    for (a, b, meeting) in [
        ("bundle", "bundle/", Some(Meeting::Is)),
        ("link", "bundle", Some(Meeting::Is)),
        ("hard", "link/x", Some(Meeting::Is)),
        ("none/../bundle", "bundle", Some(Meeting::Is)),
        ("none/../link/../bundle/new", "bundle/new", Some(Meeting::Is)),
        ("link/new/deep", "bundle", Some(Meeting::LiesIn)),
        ("other/onnx/../new", "bundle", Some(Meeting::LiesIn)),
        ("link/../bundle/x", "bundle", Some(Meeting::LiesIn)),
        ("bundle", "link/x", Some(Meeting::Holds)),
        (".", "other/onnx", Some(Meeting::Holds)),
        ("new", "new/cache", Some(Meeting::Holds)),
        ("bundle2", "bundle", None),
        ("other/new", "bundle", None),
        ("bundle/x", "bundle/onnx", None),
        ("dangling", "bundle", None),
    ] {
        let [a, b] = [a, b].map(|p| Place::of(&root.join(p)).unwrap());
        assert_eq!(a.meets(&b), meeting, "{} {}", a.path(), b.path());
    }
    // A link that leads nowhere is something that is there.
    for replace in [false, true] {
        assert!(StagedFolder::create(&root.join("dangling"), replace, &KIND).is_err());
        assert!(StagedFile::create(&root.join("dangling"), replace).is_err());
    }
}
