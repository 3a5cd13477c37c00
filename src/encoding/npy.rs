//! The header of NumPy's `.npy` files.

/// Header of version 1.0 for a row-major array: magic, length, and a Python literal filled up with spaces so that the
/// data starts at a multiple of 64 (NumPy's `numpy.lib.format`).
///
/// `descr` is NumPy's name of the type, for example `<f4`.
pub fn npy_header(descr: &str, shape: &[usize]) -> Vec<u8> {
    const BEFORE_TEXT: usize = 10;
    const ALIGNMENT: usize = 64;

    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    // A tuple of one needs its comma.
    let axes = axes.join(", ") + ",";
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    let unpadded = BEFORE_TEXT + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    text.push('\n');

    let length = u16::try_from(text.len()).expect("a shape of a few axes is far shorter");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(length.to_le_bytes());
    header.extend(text.into_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::npy_header;

    #[test]
    fn headers_are_aligned_and_say_the_shape() {
        for (shape, text) in [(&[3, 4][..], "(3, 4,)"), (&[5], "(5,)"), (&[1_000_000, 37, 384], "(1000000, 37, 384,)")] {
            let header = npy_header("<f4", shape);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            let literal = std::str::from_utf8(&header[10..]).unwrap();
            assert!(literal.contains(&format!("'shape': {text}")), "{literal}");
            assert!(literal.ends_with('\n'));
        }
    }
}
