//! Contact sheets: images in a grid, each with its label, optionally with its patches.

use dpar_export_inputs::memory;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle, iso_8859_1};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::text::Baseline;
use embedded_graphics::text::renderer::TextRenderer;

use super::overlay::{self, Area};
use super::{Picture, PictureError};

/// How a contact sheet is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridOptions {
    /// Images per row, at least 1.
    pub columns: usize,
    /// Each pixel becomes a square of this side, at least 1 (nearest neighbour: nothing is smoothed).
    pub scale: usize,
    /// A label per image; empty = none. What does not fit is cut, with an ellipsis.
    pub labels: Vec<String>,
    /// Patch lengths per image in tokens, drawn as outlines and counted in the label; zeros (padding) do not count.
    pub overlay: Option<Vec<Vec<usize>>>,
    /// Tokens per row, W; used with `overlay`.
    pub grid_width: usize,
}

const PAPER: u8 = 255;
const INK: Rgb888 = Rgb888::new(31, 35, 40);
const FAINT: Rgb888 = Rgb888::new(101, 109, 118);
const MARGIN: usize = 16;
const GAP: usize = 14;
/// Between an image and its label.
const LABEL_GAP: usize = 5;
/// Largest first; the first in which every label fits is used, else the last.
const FONTS: [&MonoFont<'static>; 5] = [
    &iso_8859_1::FONT_9X18,
    &iso_8859_1::FONT_8X13,
    &iso_8859_1::FONT_7X13,
    &iso_8859_1::FONT_6X13,
    &iso_8859_1::FONT_6X10,
];
/// Where a label does not fit on one line in the first of [`FONTS`] this narrow, its count gets its own line.
const NARROWEST_ON_ONE_LINE: u32 = 7;
/// Most bytes of a sheet.
const MOST_BYTES: usize = 1 << 31;

/// Draws images, u8 `[n, height, width, 3]`, as a contact sheet on white.
///
/// # Errors
/// When the images are not n·height·width·3 bytes, there are none, an option does not fit them (no columns, a
/// label or patch list missing, patches that do not fill whole rows), or the sheet would exceed 2 GiB or
/// [`memory::most`].
pub fn grid(
    images: &[u8],
    n: usize,
    height: usize,
    width: usize,
    options: &GridOptions,
) -> Result<Picture, PictureError> {
    let size = || PictureError::Size { what: "a grid", bytes: images.len(), height, width };
    let image_bytes = height.checked_mul(width).and_then(|p| p.checked_mul(3)).ok_or_else(size)?;
    if n == 0 || image_bytes == 0 || image_bytes.checked_mul(n) != Some(images.len()) {
        return Err(size());
    }
    check(options, n)?;
    let labels: Vec<Label> = (0..n).map(|i| Label::of(options, i)).collect();
    let labelled = labels.iter().any(|l| l.chars(false) > 0);

    let cell_width = width.checked_mul(options.scale).ok_or_else(size)?;
    let cell_height = height.checked_mul(options.scale).ok_or_else(size)?;
    let lettering = Lettering::choose(&labels, cell_width);
    let label_height = if labelled { LABEL_GAP + lettering.height() } else { 0 };
    let columns = options.columns.min(n);
    let along = |count: usize, cell: usize| {
        cell.checked_add(GAP)?.checked_mul(count)?.checked_sub(GAP)?.checked_add(2 * MARGIN)
    };
    let row_height = cell_height.checked_add(label_height).ok_or_else(size)?;
    let (sheet_width, sheet_height) =
        along(columns, cell_width).zip(along(n.div_ceil(columns), row_height)).ok_or_else(size)?;
    let bytes = sheet_width.checked_mul(sheet_height).and_then(|p| p.checked_mul(3));
    let bytes = bytes.filter(|&b| b <= MOST_BYTES).ok_or_else(size)?;

    let fits = memory::check("the contact sheet", bytes as u64).and_then(|()| memory::reserved(bytes));
    let mut rgb: Vec<u8> = fits.map_err(|source| PictureError::Memory { path: None, source })?;
    rgb.resize(bytes, PAPER);
    let mut sheet = Picture { width: sheet_width, height: sheet_height, rgb };
    for (i, (image, label)) in images.chunks_exact(image_bytes).zip(&labels).enumerate() {
        let area = Area {
            x: MARGIN + i % columns * (cell_width + GAP),
            y: MARGIN + i / columns * (row_height + GAP),
            width: cell_width,
            height: cell_height,
        };
        paste(&mut sheet, image, width, area, options.scale);
        if let Some(lengths) = options.overlay.as_ref().and_then(|all| all.get(i)) {
            overlay::outline(&mut sheet, area, lengths, options.grid_width)?;
        }
        lettering.write(&mut sheet, label, area);
    }
    Ok(sheet)
}

fn check(options: &GridOptions, n: usize) -> Result<(), PictureError> {
    let wrong = |what: String| Err(PictureError::Grid(what));
    if options.columns == 0 || options.scale == 0 {
        return wrong("columns and scale must be at least 1".to_owned());
    }
    if !options.labels.is_empty() && options.labels.len() != n {
        return wrong(format!("{} labels for {n} images", options.labels.len()));
    }
    match &options.overlay {
        Some(all) if all.len() != n => wrong(format!("{} patch lists for {n} images", all.len())),
        _ => Ok(()),
    }
}

/// A name, in ink, and a patch count, in grey.
struct Label {
    name: String,
    count: String,
}

impl Label {
    fn of(options: &GridOptions, i: usize) -> Self {
        let name = options.labels.get(i).cloned().unwrap_or_default();
        let patches = options.overlay.as_ref().and_then(|all| all.get(i));
        let count = match patches.map(|lengths| lengths.iter().filter(|&&l| l > 0).count()) {
            None => String::new(),
            Some(1) => "1 patch".to_owned(),
            Some(n) => format!("{n} patches"),
        };
        Self { name, count }
    }

    /// Between name and count on one line.
    fn dot(&self) -> &'static str {
        if self.name.is_empty() || self.count.is_empty() { "" } else { " · " }
    }

    /// Longest line in characters.
    fn chars(&self, two_lines: bool) -> usize {
        let (name, count) = (self.name.chars().count(), self.count.chars().count());
        if two_lines { name.max(count) } else { name + self.dot().chars().count() + count }
    }
}

/// Font and number of lines, the same for every label of a sheet.
#[derive(Clone, Copy)]
struct Lettering {
    font: &'static MonoFont<'static>,
    two_lines: bool,
}

impl Lettering {
    fn choose(labels: &[Label], cell_width: usize) -> Self {
        let fitting = |two_lines: bool| {
            let longest = labels.iter().map(|l| l.chars(two_lines)).max().unwrap_or(0);
            FONTS.into_iter().find(|font| longest * font.character_size.width as usize <= cell_width)
        };
        match fitting(false) {
            Some(font) if font.character_size.width >= NARROWEST_ON_ONE_LINE => {
                return Self { font, two_lines: false };
            }
            _ => {}
        }
        let two_lines = labels.iter().any(|l| !l.dot().is_empty());
        Self { font: fitting(two_lines).unwrap_or(FONTS[FONTS.len() - 1]), two_lines }
    }

    fn line(self) -> usize {
        self.font.character_size.height as usize
    }

    fn height(self) -> usize {
        self.line() * if self.two_lines { 2 } else { 1 }
    }

    /// Writes a label under an area. A name that does not fit is cut so that a count on its line still does.
    fn write(self, sheet: &mut Picture, label: &Label, area: Area) {
        let room = area.width / self.font.character_size.width as usize;
        let at = Point::new(area.x as i32, (area.y + area.height + LABEL_GAP) as i32);
        if self.two_lines {
            let below = if label.name.is_empty() { at } else { Point::new(at.x, at.y + self.line() as i32) };
            self.write_cut(sheet, &label.name, room, at, INK);
            self.write_cut(sheet, &label.count, room, below, FAINT);
            return;
        }
        let count = format!("{}{}", label.dot(), label.count);
        let end = self.write_cut(sheet, &label.name, room.saturating_sub(count.chars().count()), at, INK);
        let used = (end.x - at.x) as usize / self.font.character_size.width as usize;
        self.write_cut(sheet, &count, room.saturating_sub(used), end, FAINT);
    }

    /// Writes at most `room` characters; returns where the next one goes.
    fn write_cut(self, sheet: &mut Picture, text: &str, room: usize, at: Point, color: Rgb888) -> Point {
        let (text, is_cut) = cut(text, room);
        let style = MonoTextStyle::new(self.font, color);
        // Drawing on a picture cannot fail.
        let _ = style.draw_string(&text, at, Baseline::Top, sheet);
        let width = self.font.character_size.width as i32;
        let end = Point::new(at.x + text.chars().count() as i32 * width, at.y);
        if !is_cut {
            return end;
        }
        // Three dots in one character: the fonts have no ellipsis.
        let side = if width >= 9 { 2 } else { 1 };
        let y = end.y + self.font.baseline as i32;
        let dots = (0..3).flat_map(|dot| (0..side * side).map(move |i| (dot, i)));
        let pixels = dots.map(|(dot, i)| {
            let x = end.x + dot * width / 3 + i % side;
            Pixel(Point::new(x, y - i / side), color)
        });
        let _ = sheet.draw_iter(pixels);
        Point::new(end.x + width, end.y)
    }
}

/// At most `room` characters of `text`, the last one left free for an ellipsis where it is longer.
fn cut(text: &str, room: usize) -> (String, bool) {
    if text.chars().count() <= room {
        return (text.to_owned(), false);
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    (kept.trim_end().to_owned(), room > 0)
}

fn paste(sheet: &mut Picture, image: &[u8], width: usize, area: Area, scale: usize) {
    let stride = sheet.width * 3;
    let mut line = Vec::with_capacity(area.width * 3);
    for (row, pixels) in image.chunks_exact(width * 3).enumerate() {
        line.clear();
        for pixel in pixels.as_chunks::<3>().0 {
            line.extend(std::iter::repeat_n(pixel, scale).flatten());
        }
        for y in 0..scale {
            let at = (area.y + row * scale + y) * stride + area.x * 3;
            if let Some(target) = sheet.rgb.get_mut(at..at + line.len()) {
                target.copy_from_slice(&line);
            }
        }
    }
}

impl OriginDimensions for Picture {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Picture {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Self::Error> {
        for Pixel(at, color) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(at.x), usize::try_from(at.y)) else { continue };
            if x < self.width && y < self.height {
                let i = (y * self.width + x) * 3;
                if let Some(pixel) = self.rgb.get_mut(i..i + 3) {
                    pixel.copy_from_slice(&[color.r(), color.g(), color.b()]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> GridOptions {
        GridOptions { columns: 2, scale: 3, labels: Vec::new(), overlay: None, grid_width: 2 }
    }

    fn pixel(p: &Picture, x: usize, y: usize) -> [u8; 3] {
        let at = (y * p.width + x) * 3;
        p.rgb[at..at + 3].try_into().unwrap()
    }

    /// Three images of 4 × 4 pixels, each of one colour.
    fn images() -> Vec<u8> {
        [[200, 0, 0], [0, 200, 0], [0, 0, 200]].iter().flat_map(|c| c.repeat(16)).collect()
    }

    #[test]
    fn images_are_laid_out_on_white_and_enlarged() {
        let p = grid(&images(), 3, 4, 4, &options()).unwrap();
        assert_eq!((p.width, p.height), (2 * MARGIN + 24 + GAP, 2 * MARGIN + 24 + GAP));
        let second = MARGIN + 12 + GAP;
        assert_eq!(pixel(&p, MARGIN, MARGIN), [200, 0, 0]);
        assert_eq!(pixel(&p, MARGIN + 11, MARGIN + 11), [200, 0, 0]);
        assert_eq!(pixel(&p, second, MARGIN), [0, 200, 0]);
        assert_eq!(pixel(&p, MARGIN, second), [0, 0, 200]);
        for (x, y) in [(0, 0), (MARGIN + 12, MARGIN), (second, second), (MARGIN - 1, MARGIN)] {
            assert_eq!(pixel(&p, x, y), [255; 3], "paper at {x}, {y}");
        }
    }

    #[test]
    fn patches_are_outlined_and_counted() {
        let images = vec![128; 3 * 64 * 16 * 3];
        let o = GridOptions {
            scale: 1,
            labels: vec!["a".to_owned(), String::new(), "c".to_owned()],
            overlay: Some(vec![vec![1, 1, 2], vec![2, 2], vec![4, 0]]),
            ..options()
        };
        assert_eq!(Label::of(&o, 0).count, "3 patches");
        assert_eq!(Label::of(&o, 1).count, "2 patches");
        assert_eq!(Label::of(&o, 2).count, "1 patch");
        let p = grid(&images, 3, 16, 64, &o).unwrap();
        // Image 0, first row: a boundary between its two tokens; second row: none.
        for (y, line) in [(4, true), (12, false)] {
            for x in [31, 32] {
                assert_eq!(pixel(&p, MARGIN + x, MARGIN + y)[0] > 200, line, "{x}, {y}");
            }
        }
        let label = MARGIN + 16 + LABEL_GAP;
        assert!((label..label + 8).any(|y| (0..64).any(|x| pixel(&p, MARGIN + x, y)[0] < 128)), "a label");
    }

    #[test]
    fn long_names_are_cut_and_the_count_stays() {
        assert_eq!(cut("Smileys & Emotion", 20), ("Smileys & Emotion".to_owned(), false));
        assert_eq!(cut("Smileys & Emotion", 9), ("Smileys".to_owned(), true));
        assert_eq!(cut("é·é", 2), ("é".to_owned(), true));
        assert_eq!(cut("abc", 0), (String::new(), false));
        let o = GridOptions {
            labels: vec!["a very long name".repeat(9); 3],
            overlay: Some(vec![vec![4]; 3]),
            ..options()
        };
        let p = grid(&[0; 3 * 16 * 3], 3, 4, 4, &o).unwrap();
        let outside =
            (0..p.height).any(|y| (MARGIN + 12..MARGIN + 12 + GAP).any(|x| pixel(&p, x, y) != [255; 3]));
        assert!(!outside, "a label stays under its image");
    }

    #[test]
    fn options_that_do_not_fit_are_errors() {
        let images = images();
        let bad = |o: GridOptions| grid(&images, 3, 4, 4, &o).unwrap_err().to_string();
        assert!(bad(GridOptions { columns: 0, ..options() }).contains("columns"));
        assert!(bad(GridOptions { scale: 0, ..options() }).contains("scale"));
        assert!(bad(GridOptions { labels: vec![String::new()], ..options() }).contains("1 labels for 3"));
        assert!(
            bad(GridOptions { overlay: Some(vec![vec![4]]), ..options() }).contains("1 patch lists for 3")
        );
        assert!(bad(GridOptions { overlay: Some(vec![vec![3]; 3]), ..options() }).contains("rows of 2"));
        assert!(bad(GridOptions { scale: usize::MAX, ..options() }).contains("do not make"));
        assert!(bad(GridOptions { scale: 1 << 20, ..options() }).contains("do not make"));
        assert!(grid(&images, 2, 4, 4, &options()).is_err());
        assert!(grid(&[], 0, 4, 4, &options()).is_err());
    }
}
