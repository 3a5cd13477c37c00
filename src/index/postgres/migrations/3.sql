-- What copies of a picture are known by: null for an item that came as a vector, or was stored before.
DO $$
DECLARE
    one bigint;
BEGIN
    FOR one IN SELECT number FROM dino_collections LOOP
        EXECUTE format('ALTER TABLE dino_items_%s ADD COLUMN IF NOT EXISTS fingerprint bytea', one);
    END LOOP;
END
$$;
