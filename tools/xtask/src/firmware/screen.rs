//! Reading a machine's screen: the text memory of a VGA card, or a picture drawn with a known font.

use anyhow::{Context, Result, ensure};

const COLUMNS: usize = 80;
const ROWS: usize = 25;
const CELL: (usize, usize) = (8, 16);

/// Bytes of a VGA card's text memory: a character and its colours for each cell.
pub(super) const TEXT_BYTES: usize = COLUMNS * ROWS * 2;

/// The letter A in the font of every PC since the VGA card.
const LETTER_A: [u8; 16] = [0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0];

/// What a VGA card in text mode shows.
pub(super) fn of_text_memory(memory: &[u8]) -> String {
    let characters: Vec<u8> = memory.iter().step_by(2).copied().collect();
    lines(characters.chunks(COLUMNS).map(|row| row.iter().map(|&byte| printable(byte)).collect()))
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() { char::from(byte) } else { ' ' }
}

fn lines(rows: impl Iterator<Item = String>) -> String {
    rows.map(|row| row.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A font of 256 characters, 8 by 16 pixels.
#[derive(Debug)]
pub(super) struct Font(Vec<[u8; CELL.1]>);

impl Font {
    /// The first font in a program's bytes.
    pub(super) fn find(program: &[u8]) -> Result<Self> {
        let at = program.windows(LETTER_A.len()).position(|window| window == LETTER_A);
        let start = at.and_then(|at| at.checked_sub(CELL.1 * usize::from(b'A')));
        let glyphs = start.and_then(|start| program.get(start..start + 256 * CELL.1));
        let glyphs = glyphs.context("the program has no font")?;
        Ok(Self(glyphs.chunks_exact(CELL.1).filter_map(|glyph| glyph.try_into().ok()).collect()))
    }

    fn character(&self, glyph: [u8; CELL.1]) -> char {
        let graphic = |code: &usize| u8::try_from(*code).is_ok_and(|byte| byte.is_ascii_graphic());
        let found = self.0.iter().enumerate().find(|(code, known)| graphic(code) && **known == glyph);
        found.and_then(|(code, _)| u8::try_from(code).ok()).map_or(' ', char::from)
    }
}

/// What a picture shows, in QEMU's PPM: 80 by 25 characters in its middle.
pub(super) fn of_picture(ppm: &[u8], font: &Font) -> Result<String> {
    let mut parts = ppm.splitn(4, |&byte| byte == b'\n');
    let mut next = || parts.next().context("a picture without a head");
    ensure!(next()? == b"P6", "not a picture in binary PPM");
    let size = std::str::from_utf8(next()?)?;
    let (width, height) = size.split_once(' ').context("a picture without a size")?;
    let (width, height): (usize, usize) = (width.parse()?, height.parse()?);
    ensure!(next()? == b"255", "a picture with other than 8 bits a colour");
    let pixels = next()?;
    let (text_width, text_height) = (COLUMNS * CELL.0, ROWS * CELL.1);
    ensure!(width >= text_width && height >= text_height, "a picture of only {width} by {height}");
    let (left, top) = ((width - text_width) / 2, (height - text_height) / 2);
    let pixel = |x: usize, y: usize| {
        let at = ((top + y) * width + left + x) * 3;
        pixels.get(at..at + 3)
    };
    let cell = |column: usize, row: usize| {
        let (x, y) = (column * CELL.0, row * CELL.1);
        // No letter reaches into this corner.
        let background = pixel(x, y);
        let mut glyph = [0; CELL.1];
        for (line, bits) in glyph.iter_mut().enumerate() {
            for bit in 0..CELL.0 {
                *bits = *bits << 1 | u8::from(pixel(x + bit, y + line) != background);
            }
        }
        font.character(glyph)
    };
    Ok(lines((0..ROWS).map(|row| (0..COLUMNS).map(|column| cell(column, row)).collect())))
}

#[cfg(test)]
mod tests {
    use super::{Font, LETTER_A, of_picture, of_text_memory};

    fn program() -> Vec<u8> {
        let mut font: Vec<u8> = (0..=255_u8).flat_map(|code| [code & 0x7f; 16]).collect();
        font[65 * 16..66 * 16].copy_from_slice(&LETTER_A);
        [b"code".to_vec(), font, b"more".to_vec()].concat()
    }

    #[test]
    fn text_memory_is_characters_with_colours_between() {
        let memory: Vec<u8> = b"Hi \xc4".iter().flat_map(|&byte| [byte, 0x17]).collect();
        assert_eq!(of_text_memory(&memory), "Hi");
    }

    #[test]
    fn a_picture_is_read_with_the_font_of_who_drew_it() {
        let font = Font::find(&program()).unwrap();
        let (width, height) = (656, 432);
        let mut pixels = vec![[0, 0, 170]; width * height];
        for (row, bits) in LETTER_A.iter().enumerate() {
            for bit in (0..8).filter(|bit| bits & 0x80 >> bit != 0) {
                pixels[(16 + 16 + row) * width + 8 + 24 + bit] = [255, 255, 255];
            }
        }
        let ppm = [format!("P6\n{width} {height}\n255\n").into_bytes(), pixels.concat()].concat();
        let text = of_picture(&ppm, &font).unwrap();
        assert_eq!(text.lines().nth(1), Some("   A"));
        assert_eq!(text.trim(), "A");
    }

    #[test]
    fn what_is_no_picture_and_no_font_is_an_error() {
        assert!(Font::find(b"nothing of the kind").is_err());
        let font = Font::find(&program()).unwrap();
        for wrong in [&b"P5\n1 1\n255\n"[..], b"P6\n1 1\n255\n", b"", b"P6\n640\n"] {
            assert!(of_picture(wrong, &font).is_err());
        }
    }
}
