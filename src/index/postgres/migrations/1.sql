-- Collections by name. The items of each are in a table of their own, dino_items_NUMBER, so that it has its own
-- dimension and index, and goes as a whole. A number is never given twice.
CREATE SEQUENCE dino_numbers;
CREATE TABLE dino_collections (
    name text COLLATE "C" PRIMARY KEY,
    number bigint NOT NULL UNIQUE,
    dim integer NOT NULL,
    fingerprint text NOT NULL,
    -- That of the first vectors, for information.
    precision text,
    -- Seconds since 1970.
    created bigint NOT NULL
);

-- The member of `object` that `path` names: the member of just that name where there is one, otherwise the rest of the
-- path in the member before its first dot. The filters of the HTTP interface are defined so.
CREATE FUNCTION dino_find(object jsonb, path text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    found jsonb := object -> path;
    dot integer := strpos(path, '.');
BEGIN
    IF found IS NULL AND dot > 0 THEN
        RETURN dino_find(object -> left(path, dot - 1), substr(path, dot + 1));
    END IF;
    RETURN found;
END
$$;
