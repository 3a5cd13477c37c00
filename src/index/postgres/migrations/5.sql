-- In the others of several databases, whether the first one has had the collection of these parts: then they are never taken for parts that
-- were being made when a server was killed.
ALTER TABLE dino_collections ADD COLUMN is_made boolean NOT NULL DEFAULT false;
