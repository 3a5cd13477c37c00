//! Masks that a client sends beside a picture: COCO's compressed runs, or a picture in base64, white on black.

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    problem::{Code, Problem},
    submission::picture_from_text,
};
use dino_vision::{
    media::{DecodeError, Limits},
    segment::{DrawnMask, DrawnMaskError, Rle},
};

/// A mask that was not read yet.
#[derive(Clone, PartialEq)]
pub(super) enum MaskSource {
    Rle(Rle),
    /// Base64 of a picture, or a data URI.
    Picture(String),
}

const EXPECTED: &str =
    "expected {\"size\": [height, width], \"counts\": \"<COCO's compressed runs>\"}, or the base64 of a PNG file, white on black";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RleMembers {
    size: Size,
    counts: String,
}

/// Height and width. Strings in a mask may be long, and the usual errors would repeat one.
struct Size([u32; 2]);

struct Side(u32);

/// Reads a `Size` or a `Side`.
struct SizeReader<T>(PhantomData<T>);

const EXPECTED_SIZE: &str = "size: expected [height, width] in pixels";

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeReader(PhantomData::<Self>))
    }
}

impl<'de> Deserialize<'de> for Side {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeReader(PhantomData::<Self>))
    }
}

impl<'de> Visitor<'de> for SizeReader<Size> {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[height, width] in pixels")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Size, A::Error> {
        match (list.next_element()?, list.next_element()?, list.next_element::<Side>()?) {
            (Some(Side(height)), Some(Side(width)), None) => Ok(Size([height, width])),
            _ => Err(de::Error::custom(EXPECTED_SIZE)),
        }
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Size, E> {
        Err(E::custom(EXPECTED_SIZE))
    }
}

impl Visitor<'_> for SizeReader<Side> {
    type Value = Side;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of pixels")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Side, E> {
        u32::try_from(number).map(Side).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Side, E> {
        Err(E::custom(EXPECTED_SIZE))
    }
}

impl From<RleMembers> for MaskSource {
    fn from(RleMembers { size, counts }: RleMembers) -> Self {
        Self::Rle(Rle { size: size.0, counts })
    }
}

impl MaskSource {
    /// Memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Rle(rle) => rle.counts.len(),
            Self::Picture(text) => text.len(),
        }
    }

    /// The mask itself. Its declared size is compared with `limits` before memory is taken.
    pub(super) fn read(self, limits: &Limits) -> Result<DrawnMask, Problem> {
        match self {
            Self::Rle(rle) => Ok(DrawnMask::from_rle(&rle, limits)?),
            Self::Picture(text) => {
                let bytes = picture_from_text(Cow::Owned(text)).map_err(|problem| refused(&problem.detail))?.bytes;
                if bytes.is_empty() {
                    return Err(refused(EXPECTED));
                }
                Ok(DrawnMask::from_picture(&bytes, limits)?)
            }
        }
    }
}

fn refused(why: impl fmt::Display) -> Problem {
    Problem::new(Code::BadParameter, format!("mask: {why}"))
}

impl From<DrawnMaskError> for Problem {
    fn from(error: DrawnMaskError) -> Self {
        let is_large = matches!(
            error,
            DrawnMaskError::TooLarge { .. } | DrawnMaskError::Picture(DecodeError::TooManyPixels { .. } | DecodeError::SideTooLong { .. })
        );
        let code = if is_large { Code::TooManyPixels } else { Code::BadParameter };
        Problem { code, ..refused(error) }
    }
}

/// Without what is in it.
impl fmt::Debug for MaskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a mask of {} bytes", self.bytes())
    }
}

impl<'de> Deserialize<'de> for MaskSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = MaskSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mask: run lengths as an object, or a PNG file in base64")
            }

            /// In a query, runs are a string that holds their JSON.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MaskSource, E> {
                if text.trim_start().starts_with('{') {
                    return serde_json::from_str::<RleMembers>(text).map(Into::into).map_err(|_| E::custom(EXPECTED));
                }
                Ok(MaskSource::Picture(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<MaskSource, E> {
                if text.trim_start().starts_with('{') { self.visit_str(&text) } else { Ok(MaskSource::Picture(text)) }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MaskSource, A::Error> {
                RleMembers::deserialize(MapAccessDeserializer::new(map)).map(Into::into).map_err(|_| de::Error::custom(EXPECTED))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for MaskSource {
    fn schema_name() -> Cow<'static, str> {
        "DrawnMask".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A mask of the picture's own size, upright: COCO's compressed runs, or a PNG file in base64, white on black",
            "anyOf": [generator.subschema_for::<Rle>(), { "type": "string" }],
        })
    }
}
