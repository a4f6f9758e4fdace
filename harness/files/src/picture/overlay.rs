//! Patch boundaries drawn over an image.
//!
//! An image of T tokens is a grid of W columns; a token's cell is (width/W) × (height/rows) pixels. Patches are
//! runs of cells in raster order, drawn as tiles: the outermost pixel on each closed side is a white gutter, the
//! next one a dark rim, so that one of the two reads on any image. A side is closed between two patches and at the
//! outside; where a patch goes on in the next row, the sides at which it leaves and enters stay open.

use super::{Picture, PictureError};

/// A colour and its opacity, of 255.
type Ink = ([u8; 3], u32);

/// Outermost pixel of a tile.
const GUTTER: Ink = ([255, 255, 255], 235);
/// The pixel inside it.
const RIM: Ink = ([16, 18, 24], 165);
/// Narrower cells have a rim only, as their outermost pixel.
const NARROW: usize = 8;

/// Where an image's pixels are in a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Outlines patches of `lengths` tokens over an area with `columns` tokens per row. Zero lengths (padding) are
/// passed over.
pub(super) fn outline(
    picture: &mut Picture,
    area: Area,
    lengths: &[usize],
    columns: usize,
) -> Result<(), PictureError> {
    // Every token needs a pixel: what exceeds that is refused before memory is taken.
    let tokens = lengths.iter().try_fold(0_usize, |all, &n| all.checked_add(n));
    if tokens.is_none_or(|tokens| tokens > area.width.saturating_mul(area.height)) {
        return Err(PictureError::Grid("more tokens than pixels".to_owned()));
    }
    let patch_of: Vec<usize> =
        lengths.iter().enumerate().flat_map(|(patch, &n)| std::iter::repeat_n(patch, n)).collect();
    if columns == 0 || patch_of.is_empty() || !patch_of.len().is_multiple_of(columns) {
        let tokens = patch_of.len();
        return Err(PictureError::Grid(format!("patches of {tokens} tokens in rows of {columns}")));
    }
    let rows = patch_of.len() / columns;
    if area.width < columns || area.height < rows {
        return Err(PictureError::Grid(format!(
            "{rows} × {columns} tokens on {} × {} pixels",
            area.height, area.width
        )));
    }
    for token in 0..patch_of.len() {
        let (row, column) = (token / columns, token % columns);
        let cell = Cell {
            left: area.x + column * area.width / columns,
            right: area.x + (column + 1) * area.width / columns,
            top: area.y + row * area.height / rows,
            bottom: area.y + (row + 1) * area.height / rows,
        };
        let same = |other: Option<usize>| other.and_then(|o| patch_of.get(o)) == Some(&patch_of[token]);
        // In raster order the token before is left of this one, or at the end of the row above.
        let closed = ClosedSides {
            left: !same(token.checked_sub(1)),
            right: !same(Some(token + 1)),
            top: !same(token.checked_sub(columns)),
            bottom: !same(Some(token + columns)),
        };
        cell.draw(picture, closed);
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct ClosedSides {
    left: bool,
    right: bool,
    top: bool,
    bottom: bool,
}

/// Pixels left..right, top..bottom.
#[derive(Debug, Clone, Copy)]
struct Cell {
    left: usize,
    right: usize,
    top: usize,
    bottom: usize,
}

impl Cell {
    fn draw(self, picture: &mut Picture, closed: ClosedSides) {
        let narrow = (self.right - self.left).min(self.bottom - self.top) < NARROW;
        for y in self.top..self.bottom {
            for x in self.left..self.right {
                let across = distance(x, self.left, self.right, closed.left, closed.right);
                let down = distance(y, self.top, self.bottom, closed.top, closed.bottom);
                let ink = match (across.min(down), narrow) {
                    (0, true) => RIM,
                    (0, false) => GUTTER,
                    // A corner is rounded by one pixel.
                    (1, false) if across == down => GUTTER,
                    (1, false) => RIM,
                    _ => continue,
                };
                blend(picture, x, y, ink);
            }
        }
    }
}

/// Pixels from `at` to the nearest closed end of `start..end`.
fn distance(at: usize, start: usize, end: usize, start_closed: bool, end_closed: bool) -> usize {
    let from = |closed: bool, distance: usize| if closed { distance } else { usize::MAX };
    from(start_closed, at - start).min(from(end_closed, end - 1 - at))
}

fn blend(picture: &mut Picture, x: usize, y: usize, (color, alpha): Ink) {
    let at = (y * picture.width + x) * 3;
    if let Some(pixel) = picture.rgb.get_mut(at..at + 3) {
        for (under, over) in pixel.iter_mut().zip(color) {
            *under = ((u32::from(over) * alpha + u32::from(*under) * (255 - alpha) + 127) / 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: usize = 32;

    /// 2 rows of 4 tokens, cells of 8 × 8 pixels, on mid grey.
    fn outlined(lengths: &[usize]) -> Picture {
        let mut picture = Picture { width: W, height: 16, rgb: vec![128; W * 16 * 3] };
        let area = Area { x: 0, y: 0, width: W, height: 16 };
        outline(&mut picture, area, lengths, 4).unwrap();
        picture
    }

    fn is_gutter(p: &Picture, x: usize, y: usize) -> bool {
        p.rgb[(y * W + x) * 3] > 200
    }

    fn is_rim(p: &Picture, x: usize, y: usize) -> bool {
        p.rgb[(y * W + x) * 3] < 80
    }

    #[test]
    fn tiles_end_at_the_patch_boundaries_and_nowhere_else() {
        // Row 0: 1 + 3 tokens; row 1: 2 + 2.
        let p = outlined(&[1, 3, 2, 2]);
        let row = |y: usize| (0..W).filter(|&x| is_gutter(&p, x, y)).collect::<Vec<_>>();
        assert_eq!(row(4), [0, 7, 8, 31], "token boundaries inside a patch stay free");
        assert_eq!(row(12), [0, 15, 16, 31]);
        let column = |x: usize| (0..16).filter(|&y| is_gutter(&p, x, y)).collect::<Vec<_>>();
        assert_eq!(column(20), [0, 7, 8, 15]);
        let rim: Vec<usize> = (0..W).filter(|&x| is_rim(&p, x, 4)).collect();
        assert_eq!(rim, [1, 6, 9, 30], "a rim on the inner side of each gutter");
        assert!(is_gutter(&p, 1, 1) && is_rim(&p, 2, 1) && is_rim(&p, 1, 2), "a rounded corner");
        assert_eq!(p.rgb[(4 * W + 20) * 3..][..3], [128; 3], "the inside is untouched");
    }

    #[test]
    fn a_patch_that_goes_on_in_the_next_row_is_open_there() {
        // Tokens 3 and 4 are one patch: the right end of row 0 and the left end of row 1.
        let p = outlined(&[3, 2, 3]);
        assert!(is_gutter(&p, 24, 4) && !is_gutter(&p, 31, 4), "open at the right end");
        assert!(!is_gutter(&p, 0, 12) && is_gutter(&p, 7, 12), "open at the left end");
        assert!(is_gutter(&p, 28, 7) && is_gutter(&p, 4, 8), "closed above and below");
        assert!(is_rim(&p, 31, 1) && is_rim(&p, 31, 6), "its rim runs to the open end");
    }

    #[test]
    fn a_patch_longer_than_a_row_has_no_line_across() {
        let p = outlined(&[8]);
        assert!(!is_gutter(&p, 12, 7) && !is_gutter(&p, 12, 8));
        for (x, y) in [(0, 4), (31, 12), (12, 0), (12, 15)] {
            assert!(is_gutter(&p, x, y), "{x}, {y}");
        }
    }

    #[test]
    fn narrow_cells_have_a_rim_only() {
        let mut p = Picture { width: W, height: 4, rgb: vec![128; W * 4 * 3] };
        let area = Area { x: 0, y: 0, width: W, height: 4 };
        outline(&mut p, area, &[2, 6], 8).unwrap();
        let rim: Vec<usize> = (0..W).filter(|&x| is_rim(&p, x, 2)).collect();
        assert_eq!(rim, [0, 7, 8, 31]);
        assert!((0..W).all(|x| !is_gutter(&p, x, 2)));
    }

    #[test]
    fn lengths_must_fill_rows() {
        let mut p = Picture { width: 4, height: 4, rgb: vec![0; 48] };
        let area = Area { x: 0, y: 0, width: 4, height: 4 };
        for (lengths, columns) in [(&[1, 2][..], 2), (&[], 2), (&[4], 0), (&[64], 8), (&[usize::MAX, 1], 2)] {
            assert!(outline(&mut p, area, lengths, columns).is_err());
        }
        assert!(outline(&mut p, area, &[3, 1, 0, 0], 2).is_ok(), "padding is passed over");
    }
}
