//! What a file says of its colours, and the way from there to sRGB.
//!
//! A profile is used where it is whole and fits the picture (RGB for RGB, grey for grey, CMYK for CMYK); any other is as if it were not
//! there. One that says sRGB is recognised and costs nothing.

use std::borrow::Cow;
use std::sync::LazyLock;

use image::DynamicImage;
use moxcms::{
    CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, DataColorSpace, Layout, MatrixCoefficients, ParsingOptions,
    ProfileClass, ToneReprCurve, TransferCharacteristics, TransformExecutor, TransformOptions,
};

use super::guard;

/// Longest ICC profile that is read, in bytes, unpacked; the largest in use, of printing presses, have 1 to 3 MB.
pub(super) const PROFILE_BYTES: usize = 4 << 20;
/// Pixels that are converted at once.
const BLOCK: usize = 4096;
/// Light of diffuse white in pictures of high dynamic range, in candela per square metre (ITU-R BT.2408): what is brighter becomes white.
const DIFFUSE_WHITE: f32 = 203.0;

static SRGB: LazyLock<ColorProfile> = LazyLock::new(ColorProfile::new_srgb);
/// Grey with the tone curve of sRGB.
static SRGB_GREY: LazyLock<ColorProfile> = LazyLock::new(|| grey_profile(SRGB.red_trc.clone()));

/// What a file says of its colours.
#[derive(Clone, Debug)]
pub(super) enum Profile<'a> {
    /// An ICC profile.
    Icc(Cow<'a, [u8]>),
    /// Code points of ITU-T H.273: primaries, transfer function, matrix, full range.
    Cicp([u8; 4]),
    /// The `gAMA` and `cHRM` of a PNG.
    Gamma {
        /// The exponent of the encoding, times 100,000.
        exponent: Option<u32>,
        /// x and y of white, red, green and blue, times 100,000.
        primaries: Option<[u32; 8]>,
    },
}

/// Pixels as a file stores them: colours, transparency and orientation are not seen to yet.
#[derive(Debug)]
pub(super) enum Pixels {
    /// Grey or RGB, of 8 or 16 bits, with or without alpha.
    Image(DynamicImage),
    /// Four inks to a pixel; 255 is full ink.
    Cmyk { width: u32, height: u32, inks: Vec<u8> },
}

impl Pixels {
    /// In sRGB. Of `profiles`, first come first, the first that can be used counts; without one the numbers are sRGB already.
    ///
    /// `None` if the pixels are not as many as they should be.
    pub(super) fn into_srgb(self, profiles: &[Profile<'_>]) -> Option<DynamicImage> {
        match self {
            Self::Image(mut picture) => {
                // A tone curve of a PNG counts for grey too, whose own colours no ICC profile would describe.
                let grey = !picture.color().has_color();
                if let Some(profile) =
                    profiles.iter().find_map(|profile| profile.read(if grey { DataColorSpace::Gray } else { DataColorSpace::Rgb }))
                {
                    convert(&mut picture, &profile);
                }
                Some(picture)
            }
            Self::Cmyk { width, height, inks } => {
                let profile = profiles.iter().find_map(|profile| profile.read(DataColorSpace::Cmyk));
                let rgb = profile.and_then(|profile| cmyk_by_profile(&inks, &profile)).unwrap_or_else(|| cmyk_to_rgb(&inks));
                image::RgbImage::from_raw(width, height, rgb).map(DynamicImage::ImageRgb8)
            }
        }
    }
}

impl Profile<'_> {
    /// The profile, if it is whole and describes `space`.
    fn read(&self, space: DataColorSpace) -> Option<ColorProfile> {
        let profile = match self {
            Self::Icc(bytes) if bytes.len() <= PROFILE_BYTES => {
                let options = ParsingOptions { max_profile_size: PROFILE_BYTES + 1, ..ParsingOptions::default() };
                guard::quietly(|| ColorProfile::new_from_slice_with_options(bytes, options).ok())??
            }
            Self::Icc(_) => return None,
            Self::Cicp(code_points) => with_space(code_points_profile(*code_points)?, space),
            Self::Gamma { exponent, primaries } => with_space(gamma_profile(*exponent, *primaries)?, space),
        };
        let of_a_device = !matches!(profile.profile_class, ProfileClass::DeviceLink | ProfileClass::Abstract | ProfileClass::Named);
        (profile.color_space == space && of_a_device).then_some(profile)
    }
}

/// The profile for grey pictures where those are meant: its tone curve alone.
fn with_space(profile: ColorProfile, space: DataColorSpace) -> ColorProfile {
    if space == DataColorSpace::Gray { grey_profile(profile.red_trc) } else { profile }
}

fn grey_profile(curve: Option<ToneReprCurve>) -> ColorProfile {
    let mut profile = ColorProfile::new_gray_with_gamma(2.2);
    profile.pcs = DataColorSpace::Xyz;
    profile.gray_trc = curve;
    profile
}

/// A profile of RGB with one tone curve.
fn rgb_profile(white: [f32; 2], [red, green, blue]: [[f32; 2]; 3], curve: &ToneReprCurve) -> Option<ColorProfile> {
    let point = |[x, y]: [f32; 2]| moxcms::Chromaticity { x, y };
    let mut profile = SRGB.clone();
    profile.update_rgb_colorimetry(point(white).to_xyyb(), ColorPrimaries { red: point(red), green: point(green), blue: point(blue) });
    profile.red_trc = Some(curve.clone());
    profile.green_trc = Some(curve.clone());
    profile.blue_trc = Some(curve.clone());
    let colorants = [profile.red_colorant, profile.green_colorant, profile.blue_colorant];
    // Points on one line span no colours.
    colorants
        .iter()
        .all(|colour| [colour.x, colour.y, colour.z].iter().all(|value| value.is_finite() && value.abs() < 4.0))
        .then_some(profile)
}

/// `gAMA` and `cHRM` as libpng takes them: what lies within 5 % of the tone curve and 0.01 of the primaries of sRGB is sRGB.
fn gamma_profile(exponent: Option<u32>, primaries: Option<[u32; 8]>) -> Option<ColorProfile> {
    const SRGB_EXPONENT: u32 = 45_455;
    const SRGB_PRIMARIES: [u32; 8] = [31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000];
    let exponent = exponent.filter(|exponent| (1_000..=1_000_000).contains(exponent));
    let usual_curve = exponent.is_none_or(|exponent| exponent.abs_diff(SRGB_EXPONENT) <= SRGB_EXPONENT / 20);
    let primaries = primaries.unwrap_or(SRGB_PRIMARIES);
    let usual_primaries = primaries.iter().zip(SRGB_PRIMARIES).all(|(ours, srgb)| ours.abs_diff(srgb) <= 1_000);
    if usual_curve && usual_primaries {
        return None;
    }
    let curve = match exponent {
        Some(exponent) => ToneReprCurve::Parametric(vec![100_000.0 / exponent as f32]),
        None => SRGB.red_trc.clone()?,
    };
    let [wx, wy, rx, ry, gx, gy, bx, by] = primaries.map(|value| value as f32 / 100_000.0);
    rgb_profile([wx, wy], [[rx, ry], [gx, gy], [bx, by]], &curve)
}

/// Code points of H.273 for RGB. High dynamic range is scaled so that diffuse white is white.
fn code_points_profile([primaries, transfer, matrix, full_range]: [u8; 4]) -> Option<ColorProfile> {
    /// Of a curve, so that steps between its entries stay far below those of 8 bits.
    const ENTRIES: u16 = 4096;
    if matrix != 0 {
        return None;
    }
    let primaries = CicpColorPrimaries::try_from(primaries).ok()?;
    let transfer = TransferCharacteristics::try_from(transfer).ok()?;
    let brightest = match transfer {
        TransferCharacteristics::Smpte2084 => 10_000.0 / DIFFUSE_WHITE,
        TransferCharacteristics::Hlg => 1_000.0 / DIFFUSE_WHITE,
        _ => 1.0,
    };
    let to_linear = ToneReprCurve::make_cicp_linear_evaluator(transfer).ok()?;
    let entry = |index: u16| {
        let value = f32::from(index) / f32::from(ENTRIES - 1);
        let value = if full_range == 0 { ((value * 255.0 - 16.0) / 219.0).clamp(0.0, 1.0) } else { value };
        ((to_linear.evaluate_value(value) * brightest).clamp(0.0, 1.0) * 65_535.0).round() as u16
    };
    let curve = ToneReprCurve::Lut((0..ENTRIES).map(entry).collect());
    let code_points = CicpProfile {
        color_primaries: primaries,
        transfer_characteristics: TransferCharacteristics::Srgb,
        matrix_coefficients: MatrixCoefficients::Identity,
        full_range: true,
    };
    let mut profile = ColorProfile::new_from_cicp(code_points);
    // Unspecified and reserved primaries leave it without colours.
    profile.is_matrix_shaper().then(|| {
        profile.red_trc = Some(curve.clone());
        profile.green_trc = Some(curve.clone());
        profile.blue_trc = Some(curve);
        profile
    })
}

/// Whether the numbers mean within half a step of 8 bits what they mean in sRGB.
fn is_srgb(profile: &ColorProfile) -> bool {
    let is_usual = |curve: &Option<ToneReprCurve>| {
        let evaluator = curve.as_ref().and_then(|curve| curve.make_linear_evaluator().ok());
        evaluator.is_some_and(|evaluator| {
            (0..=32_u8)
                .map(|step| f32::from(step) / 32.0)
                .all(|value| (encode(evaluator.evaluate_value(value)) - value).abs() <= 0.5 / 255.0)
        })
    };
    if profile.color_space == DataColorSpace::Gray {
        return is_usual(&profile.gray_trc);
    }
    let tables = [&profile.lut_a_to_b_perceptual, &profile.lut_a_to_b_colorimetric, &profile.lut_a_to_b_saturation];
    let near = |ours: moxcms::Xyzd, srgb: moxcms::Xyzd| {
        [ours.x - srgb.x, ours.y - srgb.y, ours.z - srgb.z].iter().all(|difference| difference.abs() <= 0.001)
    };
    profile.is_matrix_shaper()
        && tables.iter().all(|table| table.is_none())
        && near(profile.red_colorant, SRGB.red_colorant)
        && near(profile.green_colorant, SRGB.green_colorant)
        && near(profile.blue_colorant, SRGB.blue_colorant)
        && [&profile.red_trc, &profile.green_trc, &profile.blue_trc].into_iter().all(is_usual)
}

/// Light to the number that stands for it in sRGB (IEC 61966-2-1).
fn encode(light: f32) -> f32 {
    if light <= 0.003_130_8 { light * 12.92 } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 }
}

/// The colours of `picture` from `profile` to sRGB, in place. A profile that cannot be applied changes nothing.
fn convert(picture: &mut DynamicImage, profile: &ColorProfile) {
    if guard::quietly(|| is_srgb(profile)).unwrap_or(true) {
        return;
    }
    let (layout, target) = match (picture.color().has_color(), picture.color().has_alpha()) {
        (false, false) => (Layout::Gray, &*SRGB_GREY),
        (false, true) => (Layout::GrayAlpha, &*SRGB_GREY),
        (true, false) => (Layout::Rgb, &*SRGB),
        (true, true) => (Layout::Rgba, &*SRGB),
    };
    // Building the tables looks at the whole profile: what is wrong with it shows here.
    let convert_8 = |samples: &mut [u8]| {
        if let Some(Some(transform)) = guard::quietly(|| profile.create_transform_8bit(layout, target, layout, options()).ok()) {
            transform_blocks(&*transform, samples, layout.channels());
        }
    };
    let convert_16 = |samples: &mut [u16]| {
        if let Some(Some(transform)) = guard::quietly(|| profile.create_transform_16bit(layout, target, layout, options()).ok()) {
            transform_blocks(&*transform, samples, layout.channels());
        }
    };
    match picture {
        DynamicImage::ImageLuma8(picture) => convert_8(picture),
        DynamicImage::ImageLumaA8(picture) => convert_8(picture),
        DynamicImage::ImageRgb8(picture) => convert_8(picture),
        DynamicImage::ImageRgba8(picture) => convert_8(picture),
        DynamicImage::ImageLuma16(picture) => convert_16(picture),
        DynamicImage::ImageLumaA16(picture) => convert_16(picture),
        DynamicImage::ImageRgb16(picture) => convert_16(picture),
        DynamicImage::ImageRgba16(picture) => convert_16(picture),
        // No format with profiles stores floats here.
        _ => {}
    }
}

/// The curves of a profile count, not the code points in it.
fn options() -> TransformOptions {
    TransformOptions { allow_use_cicp_transfer: false, ..TransformOptions::default() }
}

/// Block by block, so that the picture is never held twice.
fn transform_blocks<T: Copy + Default>(transform: &(dyn TransformExecutor<T> + Send + Sync), samples: &mut [T], channels: usize) {
    let mut copy = vec![T::default(); BLOCK * channels];
    for block in samples.chunks_mut(BLOCK * channels) {
        let source = &mut copy[..block.len()];
        source.copy_from_slice(block);
        // It fails on lengths that do not match, which these do.
        let _ = transform.transform(source, block);
    }
}

fn cmyk_by_profile(inks: &[u8], profile: &ColorProfile) -> Option<Vec<u8>> {
    guard::quietly(|| {
        let transform = profile.create_transform_8bit(Layout::Rgba, &SRGB, Layout::Rgb, options()).ok()?;
        let mut rgb = vec![0; inks.len() / 4 * 3];
        transform.transform(inks, &mut rgb).ok()?;
        Some(rgb)
    })?
}

/// As Pillow does, without a profile.
fn cmyk_to_rgb(inks: &[u8]) -> Vec<u8> {
    let (inks, _) = inks.as_chunks::<4>();
    let light = |ink: u8| u32::from(255 - ink);
    inks.iter().flat_map(|&[c, m, y, k]| [c, m, y].map(|ink| ((light(ink) * light(k) + 127) / 255) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    const NO_PROFILE: &[u8] = b"no ICC profile";

    fn convert_one(colour: [u8; 3], profile: Profile<'_>) -> [u8; 3] {
        let picture = DynamicImage::ImageRgb8(RgbImage::from_pixel(1, 1, Rgb(colour)));
        let picture = Pixels::Image(picture).into_srgb(&[profile]).unwrap();
        picture.into_rgb8().get_pixel(0, 0).0
    }

    fn near(ours: [u8; 3], expected: [u8; 3]) -> bool {
        ours.iter().zip(expected).all(|(ours, expected)| ours.abs_diff(expected) <= 1)
    }

    #[test]
    fn ink_becomes_light() {
        assert_eq!(cmyk_to_rgb(&[0, 0, 0, 0, 0, 255, 127, 127, 255, 255, 255, 255]), [255, 255, 255, 128, 0, 64, 0, 0, 0]);
    }

    #[test]
    fn srgb_in_every_form_is_recognised() {
        let mut icc = SRGB.clone();
        assert!(is_srgb(&icc) && is_srgb(&SRGB_GREY));
        icc = ColorProfile::new_from_slice(&icc.encode().unwrap()).unwrap();
        assert!(is_srgb(&icc));
        assert!(is_srgb(&code_points_profile([1, 13, 0, 1]).unwrap()));
        assert!(gamma_profile(Some(45_455), None).is_none());
        assert!(gamma_profile(Some(45_455), Some([31_269, 32_899, 63_999, 33_001, 30_000, 60_000, 15_000, 5_999])).is_none());
        for other in [ColorProfile::new_display_p3(), ColorProfile::new_adobe_rgb(), ColorProfile::new_pro_photo_rgb()] {
            assert!(!is_srgb(&other));
        }
    }

    /// Numbers by the matrices of the primaries, in double precision.
    #[test]
    fn known_colours_convert() {
        assert!(near(convert_one([200, 100, 50], Profile::Icc(ColorProfile::new_display_p3().encode().unwrap().into())), [215, 93, 31]));
        assert!(near(convert_one([200, 100, 50], Profile::Cicp([12, 13, 0, 1])), [215, 93, 31]));
        // Linear light: half is 188.
        assert!(near(convert_one([128, 128, 128], Profile::Cicp([1, 8, 0, 1])), [188; 3]));
        assert!(near(convert_one([128, 128, 128], Profile::Gamma { exponent: Some(100_000), primaries: None }), [188; 3]));
        // PQ: 203 cd/m² is 58 % of the signal, and white here.
        assert!(near(convert_one([148, 148, 148], Profile::Cicp([9, 16, 0, 1])), [255; 3]));
        assert!(convert_one([100, 100, 100], Profile::Cicp([9, 16, 0, 1]))[0] < 130);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let colour = [200, 100, 50];
        let p3 = ColorProfile::new_display_p3().encode().unwrap();
        let grey = ColorProfile::new_gray_with_gamma(1.0).encode().unwrap();
        let damaged = [p3[..p3.len() / 2].to_vec(), NO_PROFILE.to_vec(), Vec::new(), grey, vec![0; PROFILE_BYTES + 1]];
        for bytes in damaged {
            assert_eq!(convert_one(colour, Profile::Icc(bytes.into())), colour);
        }
        for code_points in [[2, 2, 0, 1], [0, 0, 0, 0], [1, 255, 0, 1], [9, 9, 1, 1]] {
            assert_eq!(convert_one(colour, Profile::Cicp(code_points)), colour);
        }
        for primaries in [[0; 8], [u32::MAX; 8], [1; 8]] {
            assert_eq!(convert_one(colour, Profile::Gamma { exponent: Some(0), primaries: Some(primaries) }), colour);
        }
    }
}
