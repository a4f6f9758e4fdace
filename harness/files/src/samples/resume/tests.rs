use super::*;
use crate::arrays::test_folder;
use crate::samples::ImageFolder;

const KIND: FolderKind = FolderKind {
    marks: &[TRACE, RUN],
    writes: |name| name.ends_with(".png") || [TRACE, SAMPLES, RUN, UNFINISHED].contains(&name),
};

fn run(record: &str) -> SampleRun {
    SampleRun { record: record.to_owned(), images: 5, tokens: 4, chunk: 2, size: Some(3) }
}

fn open(folder: &Utf8Path) -> Result<ResumableSamples, ResumeError> {
    ResumableSamples::open(folder, run(r#"{"seed": 1, "batch": 2}"#), &KIND)
}

/// Pixels of an image, none of two the same.
fn pixels(image: usize) -> Vec<u8> {
    (0..27).map(|i| (image * 31 + i) as u8).collect()
}

fn chunk(samples: &mut ResumableSamples, images: std::ops::Range<usize>) {
    let lengths = [vec![1, 3], vec![4], vec![2, 1, 1], vec![2, 2], vec![1, 1, 1, 1]];
    let tokens: Vec<Vec<u32>> = (0..5).map(|i| vec![i, 1, 2, 3]).collect();
    let row = |i: usize| TraceRow {
        tokens: &tokens[i],
        patch_lengths: &lengths[i],
        entropy: &[f32::NAN, 1.0, 2.0, 3.0],
        margin: &[0.5; 4],
        class: i as i64,
    };
    images.clone().for_each(|i| samples.push_image(&pixels(i)).unwrap());
    samples.save(&images.map(row).collect::<Vec<_>>()).unwrap();
}

fn names(folder: &Utf8Path) -> Vec<String> {
    let entries = folder.read_dir_utf8().unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_owned()).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_ends_anywhere_is_gone_on_with_to_the_same_files() {
    let (_guard, root) = test_folder();
    let folder = root.join("samples");
    let mut samples = open(&folder).unwrap();
    chunk(&mut samples, 0..2);
    // In the middle of a chunk: its first image was made, and is not seen.
    samples.push_image(&pixels(2)).unwrap();
    assert_eq!(names(&folder), ["000000.png", "000001.png", RUN, UNFINISHED]);
    drop(samples);
    let mut samples = open(&folder).unwrap();
    assert_eq!((samples.done(), samples.is_whole()), (2, false));
    assert_eq!(names(&folder.join(UNFINISHED)), ["00000000.npz", LOCK]);
    chunk(&mut samples, 2..4);
    // Behind the images of a chunk, and before it counts.
    for i in 4..5 {
        samples.push_image(&pixels(i)).unwrap();
        fs_err::rename(samples.work.join(image_name(4)), samples.image_path(4)).unwrap();
    }
    drop(samples);
    let mut samples = open(&folder).unwrap();
    assert_eq!(samples.done(), 4);
    chunk(&mut samples, 4..5);
    let all = samples.gather(&[], 3).unwrap();
    assert_eq!((all.steps, all.patches[2].clone()), (vec![2, 1, 3, 2, 4], vec![2, 1, 1]));
    assert_eq!(all.pixels, [0, 1, 2].map(pixels).concat());
    // Ended between the files of the end.
    fs_err::rename(samples.work.join(SAMPLES), folder.join(SAMPLES)).unwrap();
    drop(samples);
    let samples = open(&folder).unwrap();
    assert_eq!((samples.done(), samples.is_whole()), (5, false));
    samples.gather(&[], 0).unwrap();
    samples.commit().unwrap();
    let whole = open(&folder).unwrap();
    assert!(whole.is_whole() && whole.steps().unwrap() == [2, 1, 3, 2, 4]);
    let images: Vec<String> = (0..5).map(image_name).collect();
    assert_eq!(names(&folder), [&images[..], &[RUN.into(), SAMPLES.into(), TRACE.into()]].concat());
    // The bytes are those of a folder that was written at once.
    let other = root.join("other");
    fs_err::create_dir(&other).unwrap();
    let mut at_once = ImageFolder::create(&other, 3, 5).unwrap();
    (0..5).for_each(|i| at_once.push(&pixels(i)).unwrap());
    at_once.finish().unwrap();
    for name in images.iter().map(String::as_str).chain([SAMPLES]) {
        assert_eq!(
            fs_err::read(folder.join(name)).unwrap(),
            fs_err::read(other.join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn what_is_of_another_run_or_damaged_or_in_use_is_refused() {
    let (_guard, root) = test_folder();
    let folder = root.join("samples");
    let mut samples = open(&folder).unwrap();
    chunk(&mut samples, 0..2);
    let busy = open(&folder).unwrap_err();
    assert!(matches!(&busy, ResumeError::Staging(StagingError::Busy(_))), "{busy}");
    assert!(matches!(check_idle(&folder).unwrap_err(), StagingError::Busy(_)));
    check_idle(&root.join("none")).unwrap();
    chunk(&mut samples, 2..4);
    chunk(&mut samples, 4..5);
    // An image that is another one.
    fs_err::copy(samples.image_path(3), samples.image_path(1)).unwrap();
    let e = samples.gather(&[], 0).unwrap_err();
    assert!(matches!(&e, ResumeError::Damaged { path, .. } if path.ends_with("000001.png")), "{e}");
    drop(samples);
    check_idle(&folder).unwrap();
    let other = ResumableSamples::open(&folder, run(r#"{"seed": 2, "batch": 2}"#), &KIND).unwrap_err();
    assert!(other.to_string().ends_with("another run: its `seed` is 1, and here 2"), "{other}");
    fs_err::remove_file(folder.join("000003.png")).unwrap();
    let gone = open(&folder).unwrap_err();
    assert!(gone.to_string().ends_with("000003.png was written, and is gone"), "{gone}");
    fs_err::write(folder.join("notes.txt"), "").unwrap();
    let foreign = open(&folder).unwrap_err().to_string();
    assert!(foreign.contains("holds `notes.txt`"), "{foreign}");

    let at_once = root.join("at_once");
    fs_err::create_dir(&at_once).unwrap();
    fs_err::write(at_once.join(TRACE), "").unwrap();
    let e = open(&at_once).unwrap_err();
    assert!(matches!(&e, ResumeError::Staging(StagingError::Exists(_))), "{e}");
    assert_eq!(names(&at_once), [TRACE]);
    // What lies in a folder of that name, and is of no run, stays.
    let own = root.join("own");
    fs_err::create_dir_all(own.join(UNFINISHED)).unwrap();
    fs_err::write(own.join(UNFINISHED).join("thesis.txt"), "").unwrap();
    assert!(open(&own).unwrap_err().to_string().contains("is of no earlier run"));
    assert_eq!(names(&own.join(UNFINISHED)), ["thesis.txt"]);
    let link = root.join("link");
    fs_err::create_dir(&link).unwrap();
    fs_err::os::unix::fs::symlink(own.join(UNFINISHED), link.join(UNFINISHED)).unwrap();
    assert!(open(&link).unwrap_err().to_string().contains("is no folder"));
    let file = root.join("file");
    fs_err::write(&file, "").unwrap();
    assert!(open(&file).unwrap_err().to_string().ends_with("is no folder"));
}
