//! The walk over a JPEG's markers, from its start to its own end: what stands behind that is not part of the picture.

use std::borrow::Cow;

use image::metadata::Orientation;

use super::{Colours, DecodeError, Format};
use crate::media::colour::{PROFILE_BYTES, Profile};
use crate::media::header::{Header, exif_orientation};

/// What the markers of a whole file say.
pub(in crate::media) struct Markers<'a> {
    /// Width and height of the frame header.
    size: (u32, u32),
    /// The components of the frame.
    components: Vec<Component>,
    is_progressive: bool,
    has_jfif: bool,
    /// The colour transform of Adobe's APP14 segment.
    adobe: Option<u8>,
    /// Of the first EXIF segment.
    orientation: Option<Orientation>,
    /// The parts of an ICC profile: number, how many there are, content.
    profile: Vec<(u8, u8, &'a [u8])>,
    /// The restart interval in MCUs; 0 for none.
    restart_interval: u32,
    has_scans: bool,
    /// From SOI to the end of the last scan.
    content: &'a [u8],
}

/// A component, and how far the scans before here have told it.
#[derive(Clone, Debug)]
struct Component {
    id: u8,
    /// Sampling factors, horizontal and vertical.
    sampling: (u32, u32),
    /// The lowest bit that is known of each coefficient, in zigzag order; [`UNKNOWN`] before its first scan.
    low_bits: [u8; 64],
}

/// No scan has told this coefficient.
const UNKNOWN: u8 = u8::MAX;

impl<'a> Markers<'a> {
    /// Walks from SOI to EOI (ITU-T T.81, annex B), over the entropy-coded data as well: only a file that has its end marker, and scans for
    /// all of its coefficients, is whole.
    ///
    /// Metadata counts up to the first scan. After it only tables, scans and comments may come: another picture or an unknown marker says
    /// that the end marker is missing, and that the bytes are those of something that stands behind the picture.
    pub(in crate::media) fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let cut = || Format::Jpeg.cut();
        let mut found = Self {
            size: (0, 0),
            components: Vec::new(),
            is_progressive: false,
            has_jfif: false,
            adobe: None,
            orientation: None,
            profile: Vec::new(),
            restart_interval: 0,
            has_scans: false,
            content: &[],
        };
        let mut rest = bytes.get(2..).ok_or_else(cut)?;
        let mut scan: Option<Scan> = None;
        loop {
            // Between segments and in entropy-coded data alike: up to the next 0xFF that starts a marker.
            let at = memchr::memchr_iter(0xFF, rest).find(|at| rest.get(at + 1).is_some_and(|byte| !matches!(byte, 0x00 | 0x01 | 0xFF)));
            let at = at.ok_or_else(cut)?;
            let (before, marker) = (&bytes[..bytes.len() - rest.len() + at], rest[at + 1]);
            rest = &rest[at + 2..];
            match marker {
                0xD0..=0xD7 => {
                    if let Some(scan) = &mut scan {
                        scan.restarts += 1;
                    }
                    continue;
                }
                0xD8 if !found.has_scans => continue,
                DHT | DQT | DRI | SOS | COM | DNL | 0xE0..=0xEF | EOI => {}
                _ if !found.has_scans => {}
                _ => return Err(Format::Jpeg.corrupt("its end marker is missing, and bytes that are not part of it stand behind it")),
            }
            if let Some(scan) = scan.take() {
                found.finish(&scan)?;
                found.content = before;
            }
            if marker == EOI {
                return found.whole();
            }
            let (length, after) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
            let length = usize::from(u16::from_be_bytes(*length)).saturating_sub(2);
            let (segment, after) = after.split_at_checked(length).ok_or_else(cut)?;
            let short = || Format::Jpeg.corrupt("a header segment is too short");
            match marker {
                SOS => {
                    scan = Some(found.start(segment).ok_or_else(short)?);
                    found.has_scans = true;
                }
                DRI => found.restart_interval = u32::from(u16::from_be_bytes(*segment.first_chunk().ok_or_else(short)?)),
                // A second frame header: the decoder refuses it as well, and here no size of its is looked at.
                0xC0..=0xCF if !matches!(marker, DHT | 0xC8 | 0xCC) => {
                    if !found.components.is_empty() {
                        return Err(Format::Jpeg.corrupt("it has two frame headers"));
                    }
                    found.frame(marker, segment).ok_or_else(short)?;
                }
                // Those that stand between scans are not looked at.
                _ if !found.has_scans => found.metadata(marker, segment).ok_or_else(short)?,
                _ => {}
            }
            rest = after;
        }
    }

    /// Size and orientation.
    pub(in crate::media) fn header(&self) -> Header {
        let orientation = self.orientation.unwrap_or(Orientation::NoTransforms);
        Header { orientation, ..Header::plain(self.size.0, self.size.1) }
    }

    /// From SOI to the end of the last scan.
    pub(super) fn content(&self) -> &'a [u8] {
        self.content
    }

    pub(super) fn is_progressive(&self) -> bool {
        self.is_progressive
    }

    /// The ICC profile, if all of its parts are there, each once, and it is not too long.
    pub(in crate::media) fn profile(&self) -> Option<Profile<'a>> {
        let mut parts = self.profile.clone();
        parts.sort_unstable_by_key(|part| part.0);
        let are_whole = parts.iter().zip(1..).all(|(part, number)| part.0 == number && usize::from(part.1) == parts.len());
        let length: usize = parts.iter().map(|part| part.2.len()).sum();
        match parts.as_slice() {
            [] => None,
            [(1, 1, whole)] => Some(Profile::Icc(Cow::Borrowed(whole))),
            _ if are_whole && length <= PROFILE_BYTES => Some(Profile::Icc(parts.iter().flat_map(|part| part.2).copied().collect())),
            _ => None,
        }
    }

    /// What the components stand for.
    pub(super) fn colours(&self) -> Result<Colours, DecodeError> {
        let ids: Vec<u8> = self.components.iter().map(|component| component.id).collect();
        Colours::of(&ids, self.has_jfif, self.adobe)
    }

    fn frame(&mut self, marker: u8, segment: &[u8]) -> Option<()> {
        let (&[_, height_high, height_low, width_high, width_low, _], components) = segment.split_first_chunk()?;
        self.size = (u32::from(u16::from_be_bytes([width_high, width_low])), u32::from(u16::from_be_bytes([height_high, height_low])));
        let (components, _) = components.as_chunks::<3>();
        let sampling = |factors: u8| (u32::from(factors >> 4), u32::from(factors & 15));
        self.components =
            components.iter().map(|&[id, factors, _]| Component { id, sampling: sampling(factors), low_bits: [UNKNOWN; 64] }).collect();
        self.is_progressive = matches!(marker, 0xC2 | 0xC6 | 0xCA | 0xCE);
        Some(())
    }

    fn metadata(&mut self, marker: u8, segment: &'a [u8]) -> Option<()> {
        const PROFILE: &[u8] = b"ICC_PROFILE\0";
        match marker {
            0xE0 if segment.starts_with(b"JFIF\0") => self.has_jfif = true,
            0xE1 if segment.starts_with(b"Exif\0\0") => {
                self.orientation.get_or_insert_with(|| exif_orientation(segment));
            }
            // One part more than there can be makes the profile damaged, and more are not kept.
            0xE2 if segment.starts_with(PROFILE) && u8::try_from(self.profile.len()).is_ok() => {
                if let Some((&[number, count], content)) = segment[PROFILE.len()..].split_first_chunk() {
                    self.profile.push((number, count, content));
                }
            }
            0xEE if segment.starts_with(b"Adobe") => self.adobe = Some(*segment.get(11)?),
            _ => {}
        }
        Some(())
    }

    /// Reads the header of a scan, and notes what it tells.
    fn start(&mut self, segment: &[u8]) -> Option<Scan> {
        let (&count, rest) = segment.split_first()?;
        let (selectors, rest) = rest.split_at_checked(2 * usize::from(count))?;
        let &[first, last, approximation] = rest.first_chunk()?;
        let is_told = |component: &Component| selectors.as_chunks::<2>().0.iter().any(|&[id, _]| id == component.id);
        let told: Vec<_> = self.components.iter().map(is_told).collect();
        for (component, _) in self.components.iter_mut().zip(&told).filter(|(_, is_told)| **is_told) {
            if self.is_progressive {
                component.low_bits.get_mut(usize::from(first)..=usize::from(last))?.fill(approximation & 15);
            } else {
                component.low_bits = [0; 64];
            }
        }
        Some(Scan { units: self.units(&told), restart_interval: self.restart_interval, restarts: 0 })
    }

    /// MCUs of a scan (A.2): blocks of a component that stands alone, and otherwise what covers the largest sampling factors.
    fn units(&self, told: &[bool]) -> u32 {
        let largest = self.components.iter().fold((1, 1), |(h, v), component| (component.sampling.0.max(h), component.sampling.1.max(v)));
        let told: Vec<_> = self.components.iter().zip(told).filter(|(_, is_told)| **is_told).map(|(component, _)| component).collect();
        let (width, height) = self.size;
        match told.as_slice() {
            [alone] => (width * alone.sampling.0).div_ceil(largest.0 * 8) * (height * alone.sampling.1).div_ceil(largest.1 * 8),
            _ => width.div_ceil(largest.0 * 8) * height.div_ceil(largest.1 * 8),
        }
    }

    /// Progressive scans alone are counted: of the others the decoder notices that they end too early.
    fn finish(&self, scan: &Scan) -> Result<(), DecodeError> {
        let expected = if scan.restart_interval == 0 { 0 } else { scan.units.div_ceil(scan.restart_interval).saturating_sub(1) };
        if self.is_progressive && scan.restarts < expected { Err(Format::Jpeg.cut()) } else { Ok(()) }
    }

    fn whole(self) -> Result<Self, DecodeError> {
        if self.components.is_empty() {
            return Err(Format::Jpeg.corrupt("no frame header"));
        }
        if self.components.iter().any(|component| component.low_bits != [0; 64]) {
            return Err(Format::Jpeg.corrupt("it ends before all of its scans"));
        }
        Ok(self)
    }
}

/// A scan that is being walked over.
struct Scan {
    units: u32,
    restart_interval: u32,
    restarts: u32,
}

const DHT: u8 = 0xC4;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const DQT: u8 = 0xDB;
const DNL: u8 = 0xDC;
const DRI: u8 = 0xDD;
const COM: u8 = 0xFE;
