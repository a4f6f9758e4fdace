//! Sets of images: a folder of PNGs, or `arr_0` of an `.npz`.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_files::arrays::ImageNpz;
use dpar_export_files::picture::{Picture, PictureError, read_as_rgb, read_png};
use dpar_export_inputs::memory;
use sha2::{Digest, Sha256};

use super::folder::{Listing, list};
use super::look::{Pictures, Sink};
use super::{EvaluateError, InputKind};

/// Most names that a warning has.
const TOLD: usize = 12;

/// A set of RGB images of one size, in an order.
#[derive(Debug)]
pub struct ImageSet {
    path: Utf8PathBuf,
    files: ImageFiles,
    count: usize,
    convert: bool,
    left_out: Vec<String>,
    /// Where not the first images are taken, but evenly spaced ones: of how many.
    spread: Option<usize>,
    size: (usize, usize),
    content: String,
    stamp: String,
}

#[derive(Debug)]
enum ImageFiles {
    Npz(ImageNpz),
    Folder(Vec<Utf8PathBuf>),
}

/// How a set of images is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Take the first images only.
    pub limit: Option<usize>,
    /// Read PNG, JPEG and WebP files of any pixels as RGB with 8 bits a channel ([`read_as_rgb`]). Otherwise a file is an
    /// RGB PNG, or an error.
    pub convert: bool,
    /// Take the images of sub-folders too.
    pub recursive: bool,
}

impl ImageSet {
    /// Opens a folder (numbered files in the order of their numbers, then the others by name) or an `.npz`, which has
    /// neither sub-folders nor other pixels. Every picture of a folder counts, or is an error.
    ///
    /// # Errors
    /// When there is no image or one of another kind, or the first cannot be read.
    pub fn open(path: &Utf8Path, reading: Reading) -> Result<Self, EvaluateError> {
        let mut set = if path.is_dir() { Self::folder(path, reading)? } else { Self::npz(path)? };
        if let Some(limit) = reading.limit {
            if limit > set.count {
                let message = format!("{path} holds {} images, not {limit}", set.count);
                return Err(EvaluateError::input(
                    InputKind::Images,
                    message,
                    Some("lower --limit, or leave it out"),
                ));
            }
            set.count = limit;
        }
        Ok(set)
    }

    fn npz(path: &Utf8Path) -> Result<Self, EvaluateError> {
        let npz = ImageNpz::open(path)?;
        let metadata = fs_err::metadata(path).map_err(EvaluateError::io(path))?;
        let (count, size) = (npz.count(), npz.size());
        let content = format!("npz {count} {} × {} {:08x}", size.0, size.1, npz.crc32());
        let stamp =
            format!("{} {} {}", metadata.len(), stamp(&metadata), path.file_name().unwrap_or_default());
        Ok(Self {
            path: path.to_owned(),
            files: ImageFiles::Npz(npz),
            count,
            convert: false,
            left_out: Vec::new(),
            spread: None,
            size,
            content,
            stamp,
        })
    }

    fn folder(path: &Utf8Path, reading: Reading) -> Result<Self, EvaluateError> {
        let Listing { images: names, left_out } = list(path, reading.recursive, reading.convert)?;
        let convert = reading.convert;
        let first = names.first().map(|first| picture(&path.join(first), convert)).transpose()?;
        let size = first.map_or((0, 0), |first| (first.height, first.width));
        let (mut content, mut stamps) = (Sha256::new(), Sha256::new());
        for name in &names {
            let file = path.join(name);
            let metadata = fs_err::metadata(&file).map_err(EvaluateError::io(&file))?;
            content.update(format!("{name} {}\n", metadata.len()));
            stamps.update(format!("{}\n", stamp(&metadata)));
        }
        let kind = if convert { "folder as rgb" } else { "folder" };
        let content = format!("{kind} {}", hex::encode(content.finalize()));
        let stamp = hex::encode(stamps.finalize());
        let files: Vec<Utf8PathBuf> = names.iter().map(|n| path.join(n)).collect();
        let (path, count, files) = (path.to_owned(), files.len(), ImageFiles::Folder(files));
        Ok(Self { path, files, count, convert, left_out, spread: None, size, content, stamp })
    }

    /// Takes `n` of the images, evenly spaced; all where there are not as many.
    pub fn spread(mut self, n: usize) -> Self {
        if n < self.count {
            self.content += &format!(", {n} evenly spaced");
            self.spread = Some(self.count);
            self.count = n;
        }
        self
    }

    /// Where image `i` lies.
    fn place(&self, i: usize) -> usize {
        self.spread.map_or(i, |of| (i as u128 * of as u128 / self.count.max(1) as u128) as usize)
    }

    /// The folder or file.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Whether files of any pixels are read as RGB with 8 bits a channel.
    pub fn converted(&self) -> bool {
        self.convert
    }

    /// What else lies in the folder: names of files, and of folders with a `/` behind.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Warns of what is left out and what is changed: once for a set, since it may be opened again.
    pub(crate) fn tell(&self) {
        if !self.left_out.is_empty() {
            let (n, shown) = (self.left_out.len(), self.left_out.iter().take(TOLD).map(String::as_str));
            let more = if n > TOLD { format!(" and {} more", n - TOLD) } else { String::new() };
            let names = shown.collect::<Vec<_>>().join(", ");
            tracing::warn!("{}: left out, being no images of the set: {names}{more}", self.path);
        }
        if self.convert {
            tracing::warn!(
                "{}: read as RGB with 8 bits: alpha is dropped, grey repeated, of 16 bits the upper 8 stay; neither colour profile \
                 nor orientation is applied",
                self.path
            );
        }
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Height and width in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// What is known of the images before they are read, wherever they lie: checksum and shape of an archive's array,
    /// names and sizes of a folder's files. Shards of one set have the same.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Changes when a file is written again: an interrupted run goes on with untouched files only.
    pub(crate) fn stamp(&self) -> &str {
        &self.stamp
    }

    /// Calls `f` with consecutive chunks of at most `chunk` of the images `range`, u8 `[n, H, W, 3]`.
    ///
    /// # Errors
    /// When a file is damaged or has another size; what `f` returns.
    pub fn chunks(
        &self,
        range: (usize, usize),
        chunk: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<(), EvaluateError>,
    ) -> Result<(), EvaluateError> {
        let range = (range.0.min(self.count), range.1.min(self.count));
        let files = match &self.files {
            ImageFiles::Npz(npz) => match self.spread {
                None => return npz.chunks(range, chunk, f),
                Some(of) => return self.spread_chunks(npz, of, range, chunk, f),
            },
            ImageFiles::Folder(files) => files,
        };
        let chunk = chunk.max(1).min(range.1.saturating_sub(range.0));
        let bytes = (3 * chunk as u64).saturating_mul(self.size.0 as u64).saturating_mul(self.size.1 as u64);
        let held = memory::check("a chunk of images", bytes).and_then(|()| memory::reserved(bytes as usize));
        let mut pixels: Vec<u8> = held.map_err(|e| too_much(&self.path, &e))?;
        for from in (range.0..range.1).step_by(chunk.max(1)) {
            pixels.clear();
            for i in from..range.1.min(from + chunk) {
                let path = &files[self.place(i)];
                let picture = picture(path, self.convert)?;
                if (picture.height, picture.width) != self.size {
                    let ((h, w), (first_h, first_w)) = ((picture.height, picture.width), self.size);
                    let message =
                        format!("{path} has {h} × {w} pixels, the first image {first_h} × {first_w}");
                    return Err(EvaluateError::input(
                        InputKind::Images,
                        message,
                        Some("evaluate images of one size"),
                    ));
                }
                pixels.extend(picture.rgb);
            }
            f(&pixels)?;
        }
        Ok(())
    }

    /// Picks evenly spaced images out of an archive of `of`, which is read once.
    fn spread_chunks(
        &self,
        npz: &ImageNpz,
        of: usize,
        (mut next, end): (usize, usize),
        chunk: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<(), EvaluateError>,
    ) -> Result<(), EvaluateError> {
        let image = self.size.0 * self.size.1 * 3;
        let mut at = self.place(next);
        npz.chunks((at, of), chunk, &mut |pixels: &[u8]| {
            let (from, to) = (at, at + pixels.len() / image);
            let mut chosen = Vec::new();
            while next < end && self.place(next) < to {
                let start = (self.place(next) - from) * image;
                chosen.extend_from_slice(&pixels[start..start + image]);
                next += 1;
            }
            at = to;
            if chosen.is_empty() { Ok(()) } else { f(&chosen) }
        })
    }
}

impl Pictures for ImageSet {
    fn count(&self) -> usize {
        self.count
    }

    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn chunks(&self, range: (usize, usize), chunk: usize, sink: &mut dyn Sink) -> Result<(), EvaluateError> {
        self.chunks(range, chunk, &mut |pixels| sink.take(pixels, None))
    }
}

/// Reads one image.
fn picture(path: &Utf8Path, convert: bool) -> Result<Picture, EvaluateError> {
    let read = if convert { read_as_rgb(path) } else { read_png(path) };
    read.map_err(|e| match e {
        PictureError::Pixels { .. } => {
            let hint = "read pixels of other kinds with --convert rgb, or make RGB PNGs of them";
            EvaluateError::input(InputKind::Images, e.to_string(), Some(hint))
        }
        e => e.into(),
    })
}

fn too_much(path: &Utf8Path, e: &memory::MemoryError) -> EvaluateError {
    EvaluateError::input(InputKind::Images, format!("{path}: {e}"), Some(memory::HINT))
}

/// Time of the last change, ns since 1970.
fn stamp(metadata: &std::fs::Metadata) -> u128 {
    let since = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_nanos())
}

#[cfg(test)]
mod tests {
    use dpar_export_files::arrays::{ArrayRef, write_npz};
    use dpar_export_files::picture::write_png;

    use super::*;
    use crate::evaluate::test_folder;
    use std::io::Write;

    const SIZE: (usize, usize) = (3, 4);
    const BYTES: usize = 3 * 4 * 3;

    fn pixels(n: usize) -> Vec<u8> {
        (0..n * BYTES).map(|i| (i * 37 + i / 100) as u8).collect()
    }

    /// All pixels of a range, and the sizes of the chunks.
    fn read(set: &ImageSet, range: (usize, usize), chunk: usize) -> (Vec<u8>, Vec<usize>) {
        let (mut all, mut sizes) = (Vec::new(), Vec::new());
        let mut take = |pixels: &[u8]| {
            sizes.push(pixels.len() / BYTES);
            all.extend(pixels);
            Ok(())
        };
        set.chunks(range, chunk, &mut take).unwrap();
        (all, sizes)
    }

    #[test]
    fn folders_and_archives_give_the_same_images_from_anywhere() {
        let (_guard, root) = test_folder();
        let all = pixels(11);
        let shape = [11, 3, 4, 3];
        let stored = root.join("stored.npz");
        write_npz(&stored, &[("arr_0", ArrayRef::u8(&shape, &all))]).unwrap();
        let deflated = root.join("deflated.npz");
        let mut zip = zip::ZipWriter::new(fs_err::File::create(&deflated).unwrap());
        zip.start_file("arr_0.npy", zip::write::SimpleFileOptions::default()).unwrap();
        let mut npy = fs_err::read(&stored).unwrap();
        let start = npy.windows(6).position(|w| w == b"\x93NUMPY").unwrap();
        npy.drain(..start);
        npy.truncate(128 + all.len());
        zip.write_all(&npy).unwrap();
        zip.finish().unwrap();
        let folder = root.join("folder");
        fs_err::create_dir(&folder).unwrap();
        for (i, image) in all.chunks(BYTES).enumerate() {
            write_png(&folder.join(format!("{i:06}.png")), image, 3, 4).unwrap();
        }
        // What `generate` writes beside its images.
        write_png(&folder.join("grid.png"), &all[..BYTES], 3, 4).unwrap();
        fs_err::write(folder.join("trace.npz"), b"").unwrap();
        let first = |n| Reading { limit: Some(n), ..Reading::default() };
        for path in [stored, deflated, folder] {
            let set = ImageSet::open(&path, Reading::default()).unwrap();
            assert_eq!((set.count(), set.size()), (11, SIZE), "{path}");
            assert_eq!(read(&set, (0, 11), 4), (all.clone(), vec![4, 4, 3]), "{path}");
            assert_eq!(read(&set, (5, 9), 3), (all[5 * BYTES..9 * BYTES].to_vec(), vec![3, 1]), "{path}");
            assert_eq!(ImageSet::open(&path, first(7)).unwrap().count(), 7);
            assert!(ImageSet::open(&path, first(12)).is_err());
            // Images 0, 2, 5 and 8 of 11.
            let spread = ImageSet::open(&path, Reading::default()).unwrap().spread(4);
            let wanted: Vec<u8> =
                [0, 2, 5, 8].iter().flat_map(|i| &all[i * BYTES..(i + 1) * BYTES]).copied().collect();
            assert_eq!((spread.count(), read(&spread, (0, 4), 3).0), (4, wanted.clone()), "{path}");
            assert_eq!(read(&spread, (1, 3), 1).0, wanted[BYTES..3 * BYTES], "{path}");
            assert_ne!(spread.content(), set.content());
            assert_eq!(set.spread(20).count(), 11);
        }
    }

    #[test]
    fn unusable_sets_are_named() {
        let (_guard, root) = test_folder();
        let said = |path: &Utf8Path| ImageSet::open(path, Reading::default()).unwrap_err().to_string();
        assert!(said(&root).contains("holds no .png"));
        assert!(said(&root.join("none.npz")).contains("none.npz"));
        let path = root.join("x.npz");
        let shape = [2, 3, 4, 1];
        write_npz(&path, &[("arr_0", ArrayRef::u8(&shape, &[0; 24]))]).unwrap();
        assert!(said(&path).contains("[any, any, any, 3]"), "{}", said(&path));
        write_npz(&path, &[("arr_1", ArrayRef::u8(&shape, &[0; 24]))]).unwrap();
        assert!(said(&path).contains("no such array"), "{}", said(&path));
        let shape = [1, 2, 2, 3];
        write_npz(&path, &[("arr_0", ArrayRef::f32(&shape, &[0.0; 12]))]).unwrap();
        assert!(said(&path).contains("float32"), "{}", said(&path));
        let folder = root.join("folder");
        fs_err::create_dir(&folder).unwrap();
        write_png(&folder.join("0.png"), &[0; BYTES], 3, 4).unwrap();
        write_png(&folder.join("1.png"), &[0; BYTES], 4, 3).unwrap();
        let set = ImageSet::open(&folder, Reading::default()).unwrap();
        let error = set.chunks((0, 2), 2, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("1.png has 4 × 3 pixels"), "{error}");
    }

    #[test]
    fn other_kinds_are_read_as_rgb_where_that_is_asked_for() {
        let (_guard, root) = test_folder();
        let rgb = pixels(2);
        let save = |name: &str, color, pixels: &[u8]| {
            let mut encoder = png::Encoder::new(fs_err::File::create(root.join(name)).unwrap(), 4, 3);
            encoder.set_color(color);
            encoder.write_header().unwrap().write_image_data(pixels).unwrap();
        };
        save("0.png", png::ColorType::Rgb, &rgb[..BYTES]);
        let rgba: Vec<u8> = rgb[BYTES..].chunks(3).flat_map(|p| [p[0], p[1], p[2], 7]).collect();
        save("1.png", png::ColorType::Rgba, &rgba);
        let grey: Vec<u8> = (0..12).collect();
        save("2.PNG", png::ColorType::Grayscale, &grey);
        let error = ImageSet::open(&root, Reading::default()).unwrap().chunks((0, 3), 3, &mut |_| Ok(()));
        match error {
            Err(EvaluateError::Input { message, hint: Some(hint), .. }) => {
                assert!(message.contains("1.png: not RGB with 8 bits a channel, but RGB and alpha with 8"));
                assert!(hint.contains("--convert rgb"), "{hint}");
            }
            other => panic!("{other:?}"),
        }
        let set = ImageSet::open(&root, Reading { convert: true, ..Reading::default() }).unwrap();
        let repeated: Vec<u8> = grey.iter().flat_map(|v| [*v; 3]).collect();
        assert_eq!((set.count(), set.converted()), (3, true));
        assert_eq!(read(&set, (0, 3), 2).0, [rgb, repeated].concat());
    }
}
